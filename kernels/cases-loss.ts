/** Cases of listLoss: ragged lists in one batch, binary and graded labels, tied scores, tau near zero. */
import { floats, type GradientCase, type KernelCase } from "./case.ts";
import type { Target, TwinBuffer } from "./kernel.ts";
import { LOSSES, type LossName, listLoss } from "./list-loss.ts";
import { listLossTwin } from "./list-loss-twin.ts";
import { seededRandom } from "./random.ts";

const LENGTHS = [1, 2, 3, 57, 100, 0, 10, 5, 65, 33];

/** (B) first row and end of lists of that many candidates, laid out one after another. */
export function listRanges(lengths: readonly number[]): { lists: Uint32Array; rows: number } {
  const lists: number[] = [];
  let first = 0;
  for (const m of lengths) {
    lists.push(first, first + m + 1);
    first += m + 1;
  }
  return { lists: Uint32Array.from(lists), rows: first };
}

/** Labels that a loss takes; `graded`: more than 0 and 1 where it takes more. A list of two and more can be ordered. */
function labelsOf(loss: LossName, random: () => number, lists: Uint32Array, graded: boolean): Float32Array {
  const [top, scale] = graded && loss !== "any_positive" ? [4, loss === "bce" ? 0.25 : 1] : [1, 1];
  return Float32Array.from({ length: lists[lists.length - 1] }, (_, r) => {
    const first = lists.findLast((row, i) => i % 2 === 0 && row <= r) ?? 0;
    if (r <= first + 2) return r === first + 2 ? 0 : scale;
    return Math.floor(random() * (top + 1)) * scale;
  });
}

/** Most scores a few tau apart, some far below: there a softmax has vanished. */
function scoresOf(random: () => number, rows: number, tau: number, step: number): Float32Array {
  return floats(random, 2 * rows).map((s, i) => {
    const score = i % 16 < 14 ? 0.5 + 3 * Math.min(tau, 0.2) * s : -Math.abs(s);
    return step > 0 ? Math.round(score / step) * step : score;
  });
}

/** Each loss, with and without subgroups. */
export function lossCases(target: Target): KernelCase[] {
  const { lists, rows } = listRanges(LENGTHS);
  // Scores in whole steps are often equal.
  const kinds = [
    { title: "binary labels, tau 0.2", graded: false, tau: 0.2, step: 0, stale: true },
    { title: "graded labels, tied scores, tau 1", graded: true, tau: 1, step: 0.125, stale: true },
    // Many derivatives are 0 there: the buffers begin with zeros, so that they do not count as written.
    { title: "binary labels, tau 1e-4", graded: false, tau: 1e-4, step: 0, stale: false },
    { title: "graded labels, tied scores, tau 1e-3", graded: true, tau: 1e-3, step: 1 / 1024, stale: false },
  ];
  return LOSSES.flatMap((loss) =>
    [...new Set([target.subgroupSize, 0])].flatMap((subgroup) =>
      kinds.map(({ title, graded, tau, step, stale }) => ({
        title: `${loss}, lists of ${LENGTHS}, ${title}, subgroup ${subgroup}`,
        kernel: listLoss({ loss, subgroup }),
        rows: LENGTHS.length,
        offset: 0,
        buffers: (): Record<string, TwinBuffer> => {
          const random = seededRandom(rows + title.length);
          const cosines = scoresOf(random, rows, tau, step);
          const fresh = (size: number) => (stale ? floats(random, size, 9) : new Float32Array(size));
          return {
            cosines,
            labels: labelsOf(loss, random, lists, graded),
            lists,
            hyper: Float32Array.of(tau, 1 / 16),
            losses: fresh(LENGTHS.length),
            grads: fresh(rows),
            ...auxOf(loss, rows),
          };
        },
        twin: (buffers: Readonly<Record<string, TwinBuffer>>) => listLossTwin({ loss }, buffers, LENGTHS.length),
      })),
    ),
  );
}

function auxOf(loss: LossName, rows: number): Record<string, TwinBuffer> {
  const type = listLoss({ loss, subgroup: 0 }).bindings.find(({ name }) => name === "aux")?.type;
  return type === undefined ? {} : { aux: new Float32Array(type === "array<f32>" ? rows : 2 * rows) };
}

/** Gradient cases of all losses by the scores. lambdaloss: no step of a finite difference changes a rank. */
export function lossGradientCases(): GradientCase[] {
  const lengths = [1, 2, 3, 9];
  const { lists, rows } = listRanges(lengths);
  return LOSSES.flatMap((loss) =>
    [false, true].map((graded) => {
      const labels = labelsOf(loss, seededRandom(3), lists, graded);
      const run = (scores: Float64Array) => {
        const cosines = new Float64Array(2 * rows);
        for (const [r, s] of scores.entries()) cosines[2 * r] = s;
        const [losses, grads] = [new Float64Array(lengths.length), new Float64Array(rows)];
        const hyper = Float64Array.of(0.5, 0.7);
        listLossTwin({ loss }, { cosines, labels, lists, hyper, losses, grads }, lengths.length);
        return { scalar: losses.reduce((sum, value) => sum + hyper[1] * value, 0), grads };
      };
      return {
        title: `${loss} by the scores, ${graded ? "graded" : "binary"} labels`,
        inputs: () => ({ scores: Float64Array.from(floats(seededRandom(5), rows)) }),
        scalar: ({ scores }) => run(scores).scalar,
        gradient: ({ scores }) => ({ scores: run(scores).grads }),
      };
    }),
  );
}
