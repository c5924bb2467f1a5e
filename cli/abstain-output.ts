/** What the commands say of abstaining: a threshold that was chosen, and coverage against error. */
import {
  type AbstainRecord,
  areaUnderCoverage,
  type CoveragePoint,
  coverageAt,
  coverageCurve,
  type FirstPlaces,
  thinned,
  whyNone,
} from "../scorer/abstain.ts";
import { binomialUpper } from "../scorer/binomial.ts";
import { counted, formatCount, formatTable } from "./format.ts";
import { note, warn } from "./terminal.ts";

/** Rows of the table, and points of the curve in the JSON object. */
const [ROWS, POINTS] = [10, 200];

const percent = (value: number, digits = 1) => `${(100 * value).toFixed(digits)}%`;
const whole = (value: number) => `${Number((100 * value).toPrecision(4))}%`;

/** `answers 71 of 96 lists (74.0%), 1 of them wrong (1.4%); at most 4.9% wrong with 95% confidence` */
function words({ answered, lists, coverage, wrong, upper, confidence, starts }: AbstainRecord): string {
  return `answers ${formatCount(answered)} of ${counted(lists, "list")} (${percent(coverage)}), ${formatCount(wrong)} of them wrong (${percent(wrong / answered)}); at most ${percent(upper ?? 1)} wrong with ${whole(confidence)} confidence (Clopper-Pearson${starts > 1 ? `, the level shared by ${starts} starts` : ""})`;
}

/** One line: the threshold, or why there is none. */
export function thresholdLine(record: AbstainRecord): string {
  return record.threshold === null
    ? `abstain no threshold leaves at most ${whole(record.error)} of the winners unsafe: ${whyNone(record)}`
    : `abstain below ${record.threshold}: ${words(record)}`;
}

/** After a training: the threshold that its validation lists gave. */
export function tellThreshold(record: AbstainRecord): void {
  if (record.threshold === null) {
    warn(`warning: ${thresholdLine(record)}`);
    return;
  }
  note(thresholdLine(record));
  note("        the same lists chose the weights: measure it on others, with stratum eval");
}

/** Coverage against error of a scorer on lists that it has not seen. */
export interface CoverageReport {
  readonly places: FirstPlaces;
  readonly safeFrom: number;
  /** Lists of an instruction that another list stands for. */
  readonly repeated: number;
  /** What the scorer's own threshold comes to here. */
  readonly stored: { readonly record: AbstainRecord; readonly point: CoveragePoint } | null;
  /** A threshold chosen on these lists. */
  readonly chosen: AbstainRecord | null;
  readonly confidence: number;
}

const jsonPoint = ({ threshold, answered, wrong, coverage, error }: CoveragePoint, confidence: number) => ({
  ...{ threshold, answered, wrong, coverage, error },
  upper: binomialUpper(wrong, answered, confidence),
});

/** As it stands in the JSON object of `eval`. */
export function jsonCoverage({ places, safeFrom, repeated, stored, chosen, confidence }: CoverageReport): unknown {
  const curve = coverageCurve(places);
  return {
    ...{ safe_from: safeFrom, lists: places.best.length, repeated, confidence },
    area: areaUnderCoverage(curve),
    curve: thinned(curve, POINTS).map((point) => jsonPoint(point, confidence)),
    stored: stored === null ? null : { ...jsonPoint(stored.point, confidence), asked: stored.record.error },
    chosen,
  };
}

/** The table for people, from all lists answered to the strictest tenth. */
export function coverageTable({ places, safeFrom, stored, chosen, confidence }: CoverageReport): string {
  const curve = coverageCurve(places);
  const lists = places.best.length;
  const rows = Array.from({ length: ROWS }, (_, i) => (lists * (ROWS - i)) / ROWS).flatMap((most) => {
    const point = curve.findLast(({ answered }) => answered <= most);
    return point === undefined ? [] : [point];
  });
  const cells = (point: CoveragePoint, name = "") => [
    percent(point.coverage),
    point.threshold.toFixed(4),
    `${formatCount(point.wrong)} of ${formatCount(point.answered)}`,
    point.error === null ? "-" : percent(point.error),
    percent(binomialUpper(point.wrong, point.answered, confidence)),
    name,
  ];
  const own = stored === null ? [] : [cells(stored.point, "the scorer's own threshold")];
  return [
    `coverage against error: ${counted(lists, "list")}, answered where the best score reaches the threshold; wrong: the first place has a label below ${safeFrom}`,
    formatTable(
      ["answered", "threshold", "wrong", "error", `at most (${whole(confidence)})`, ""],
      [...[...new Set(rows)].map((point) => cells(point)), ...own],
      [0, 1, 2, 3, 4],
    ),
    "'at most' is Clopper and Pearson's bound for a threshold that was fixed before: choosing one by this table voids it.",
    ...(chosen === null ? [] : [thresholdLine(chosen)]),
  ].join("\n");
}

/** What a fixed threshold comes to, beside its record. */
export function storedThreshold(places: FirstPlaces, record: AbstainRecord | null): CoverageReport["stored"] {
  return record?.threshold == null ? null : { record, point: coverageAt(places, record.threshold) };
}
