/** How the methods do elsewhere: on other files, on slices of this one, and where they may withhold an answer. */
import type { Report, ReportCoverage } from "../scorer/report-data.ts";
import { numberCell, type ShownFigure, type ShownSection, type ShownTable } from "./document.ts";
import {
  type Estimate,
  type Place,
  percent,
  percentCell,
  placeName,
  samePlace,
  styleOf,
  weights,
  withInterval,
} from "./report-words.ts";

interface Row extends Place {
  readonly method: string;
  readonly top1: Estimate | null;
}

/** Rows of the recommended place, and of methods that have none. */
function atPlace<T extends Row>({ recommendation }: Report, rows: readonly T[]): readonly T[] {
  if (recommendation === null) return rows;
  const { recommended } = recommendation;
  const own = rows.filter((row) => row.layers === null || samePlace(row, recommended));
  return own.length > 0 ? own : rows;
}

function namesOf(report: Report, rows: readonly Row[]): Row[] {
  const { poolings } = report.run;
  const seen = new Map(rows.map((row) => [`${row.method} ${placeName(row, poolings)}`, row]));
  return [...seen.values()];
}

const nameOf = (report: Report, row: Row) =>
  row.layers === null ? row.method : `${row.method}, ${placeName(row, report.run.poolings)}`;

/** The section of transfer; null without other files. */
export function transferSection(report: Report): ShownSection | null {
  const { transfer } = report;
  if (transfer === null) return null;
  const pairs = transfer.trained.flatMap((trained) => transfer.measured.map((measured) => ({ trained, measured })));
  const tableOf = (rows: typeof transfer.rows, caption: string, folded: boolean): ShownTable => {
    const tint = weights(rows.map(({ top1 }) => top1?.mean));
    return {
      ...{ caption, folded },
      header: ["method", "trained on", ...transfer.measured.map((name) => `on ${name}`)],
      rows: namesOf(report, rows).flatMap((one) =>
        transfer.trained.flatMap((trained) => {
          const cells = transfer.measured.map((measured) =>
            rows.find(
              (row) =>
                row.method === one.method &&
                samePlace(row, one) &&
                row.trained === trained &&
                row.measured === measured,
            ),
          );
          if (cells.every((row) => row === undefined)) return [];
          return [[nameOf(report, one), trained, ...cells.map((row) => percentCell(row?.top1, tint(row?.top1?.mean)))]];
        }),
      ),
    };
  };
  const here = atPlace(report, transfer.rows);
  const recommended = report.recommendation?.recommended;
  const words = pairs.flatMap(({ trained, measured }) => {
    const row = here.find(
      (each) =>
        each.method === recommended?.method && each.trained === trained && each.measured === measured && each.top1,
    );
    return row?.top1 ? [`${row.method}, trained on ${trained}, on ${measured}: ${withInterval(row.top1)}.`] : [];
  });
  return {
    id: "transfer",
    title: "Transfer",
    words: [
      "Trained on one file, measured on another, top-1 in %. On its own file a method is measured on the lists held out.",
    ],
    figures: [
      {
        title: "From file to file",
        words,
        charts: [],
        tables: [
          tableOf([...here], "Top-1 in % at the recommended place", false),
          ...(here.length < transfer.rows.length ? [tableOf(transfer.rows, "Top-1 in % at every place", true)] : []),
        ],
      },
    ],
  };
}

/** The section of slices; null where there are none. */
export function slicesSection(report: Report): ShownSection | null {
  const { slices } = report;
  if (slices.length === 0) return null;
  const tableOf = (
    pick: (rows: Report["slices"][number]["rows"]) => readonly Row[],
    caption: string,
    folded: boolean,
  ) => {
    const picked = slices.map(({ rows }) => pick(rows));
    const tint = weights(picked.flat().map(({ top1 }) => top1?.mean));
    return {
      ...{ caption, folded },
      header: ["method", ...slices.map(({ name, lists }) => `${name} (${lists})`)],
      rows: namesOf(report, picked.flat()).map((one) => [
        nameOf(report, one),
        ...picked.map((rows) => {
          const row = rows.find((each) => each.method === one.method && samePlace(each, one));
          return percentCell(row?.top1, tint(row?.top1?.mean));
        }),
      ]),
    };
  };
  const recommended = report.recommendation?.recommended;
  const words = slices.flatMap(({ name, lists, rows }) => {
    const row = atPlace(report, rows).find(({ method, top1 }) => method === recommended?.method && top1);
    return row?.top1 ? [`${name} (${lists} lists): ${row.method} ${withInterval(row.top1)}.`] : [];
  });
  const every = slices.some(({ rows }) => atPlace(report, rows).length < rows.length);
  return {
    id: "slices",
    title: "Slices",
    words: ["Top-1 in % on parts of the lists; in brackets, how many lists a part has."],
    figures: [
      {
        title: "By slice",
        words,
        charts: [],
        tables: [
          tableOf((rows) => atPlace(report, rows), "Top-1 in % at the recommended place", false),
          ...(every ? [tableOf((rows) => rows, "Top-1 in % at every place", true)] : []),
        ],
      },
    ],
  };
}

/** Shares of answered lists in the table. */
const COVERAGES = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1];

/** The section of coverage against error; null where it was not measured. */
export function coverageSection(report: Report): ShownSection | null {
  const { coverage } = report;
  if (coverage === null || coverage.length === 0) return null;
  const here = atPlace(
    report,
    coverage.map((curve) => ({ ...curve, top1: null })),
  );
  return {
    id: "coverage",
    title: "Coverage against error",
    words: [
      "An answer is withheld where the best score of a list stays below a threshold. Coverage: the share of lists that are answered; error: the share of the answers that are not safe.",
    ],
    figures: [coverageFigure(report, here)],
  };
}

function coverageFigure(report: Report, curves: readonly ReportCoverage[]): ShownFigure {
  const title = "Error by coverage";
  const names = namesOf(
    report,
    curves.map((curve) => ({ ...curve, top1: null })),
  );
  const own = names.map((one) => ({
    one,
    curves: curves.filter((curve) => curve.method === one.method && samePlace(curve, one)),
  }));
  /** The error of the answers when at least so many are given: mean over the seeds. */
  const errorAt = (of: readonly ReportCoverage[], share: number): number | null => {
    const errors = of.flatMap(({ curve }) => {
      const enough = curve.filter(({ coverage }) => coverage >= share - 1e-9);
      if (enough.length === 0) return [];
      return [enough.reduce((a, b) => (b.coverage < a.coverage ? b : a)).error];
    });
    return errors.length === 0 ? null : errors.reduce((sum, error) => sum + error, 0) / errors.length;
  };
  const rows = own.map(({ one, curves: of }) => ({
    one,
    errors: COVERAGES.map((share) => ({ share, error: errorAt(of, share) })),
  }));
  return {
    title,
    charts: [
      {
        ...{ kind: "lines", title, rules: [] },
        x: { label: "coverage in %", percent: true, domain: [0, 1] },
        y: { label: "error in %", percent: true },
        series: rows.map(({ one, errors }) => ({
          ...{ name: nameOf(report, one), ...styleOf(report, one.method) },
          points: errors.flatMap(({ share, error }) =>
            error === null
              ? []
              : [
                  {
                    x: share,
                    y: error,
                    title: `${one.method}: ${percent(error)}% wrong of ${percent(share)}% answered`,
                  },
                ],
          ),
        })),
      },
    ],
    words: rows.flatMap(({ one, errors }) => {
      const [all, , , , , half] = errors;
      if (all.error === null || half.error === null) return [];
      return [
        `${nameOf(report, one)}: ${percent(all.error)}% wrong when all lists are answered, ${percent(half.error)}% when half of them are.`,
      ];
    }),
    tables: [
      {
        caption: "Error in % where at least so many of the lists are answered, mean over the seeds",
        header: ["method", ...COVERAGES.map((share) => `${(100 * share).toFixed(0)}%`)],
        rows: rows.map(({ one, errors }) => [
          nameOf(report, one),
          ...errors.map(({ error }) => numberCell(error === null ? "-" : percent(error))),
        ]),
      },
    ],
  };
}
