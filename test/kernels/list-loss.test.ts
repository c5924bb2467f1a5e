import { readFileSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import { listRanges } from "../../kernels/cases-loss.ts";
import { checkLabels, LIST_LOSS_AUX_BYTES, LOSSES, type LossName, listLoss } from "../../kernels/list-loss.ts";
import { listLossTwin } from "../../kernels/list-loss-twin.ts";
import { compareWithin } from "../support/compare.ts";

const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

/** Sums below an exponential, to which WGSL grants 3 + 2 |x| ULP. */
const ROOM = { element: 2e-5, nmse: 2e-12 };
const SUBGROUPS = [...new Set([engine.target.subgroupSize, 0])];

interface List {
  readonly scores: readonly number[];
  readonly labels: readonly number[];
}

/** `make-list-loss.py` says how the numbers were made. */
interface Reference {
  readonly title: string;
  readonly tau: number;
  readonly lists: readonly List[];
  readonly results: Readonly<Partial<Record<LossName, { losses: number[]; grads: number[][] }>>>;
  readonly means?: Readonly<Record<LossName, number>>;
}
const references: Reference[] = JSON.parse(readFileSync(new URL("../golden/list-loss.json", import.meta.url), "utf8"));

/** What stands where a kernel must not look: the instruction's score and label, and what comes beside a score. */
const POISON = 1e30;

/** Buffers of float32 numbers, or of float64 for the twin. */
function buffersOf<A extends Float32Array | Float64Array>(
  given: readonly List[],
  tau: number,
  weight: number,
  make: (values: readonly number[]) => A,
) {
  const { lists, rows } = listRanges(given.map(({ scores }) => scores.length));
  const cosines = given.flatMap(({ scores }) => [POISON, POISON, ...scores.flatMap((s) => [s, POISON])]);
  const labels = given.flatMap((list) => [POISON, ...list.labels]);
  const stale = (size: number) => make(new Array<number>(size).fill(POISON));
  return {
    lists,
    cosines: make(cosines),
    labels: make(labels),
    hyper: make([tau, weight]),
    losses: stale(given.length),
    grads: stale(rows),
    aux: stale((rows * LIST_LOSS_AUX_BYTES) / 4),
  };
}

function onTwin(loss: LossName, given: readonly List[], tau: number, weight = 1) {
  const buffers = buffersOf(given, tau, weight, (values) => Float64Array.from(values));
  listLossTwin({ loss }, buffers, given.length);
  return { losses: [...buffers.losses], grads: [...buffers.grads] };
}

async function onGpu(loss: LossName, subgroup: number, given: readonly List[], tau: number, weight = 1) {
  const buffers = buffersOf(given, tau, weight, (values) => Float32Array.from(values));
  const kernel = listLoss({ loss, subgroup });
  const { losses, grads } = await runKernel(engine.device, engine.pipelines, kernel, buffers, given.length);
  return { losses: [...losses], grads: [...grads] };
}

/** Gradients of lists as the kernel lays them out: 0 for the instruction. */
const rowsOf = (grads: readonly (readonly number[])[], weight = 1) =>
  grads.flatMap((list) => [0, ...list.map((value) => value * weight)]);

const faults = (actual: readonly number[], expected: readonly number[], room = ROOM) =>
  compareWithin(Float32Array.from(actual), Float32Array.from(expected), room).wrong;

describe.each(LOSSES)("%s against PyTorch", (loss) => {
  const known = references.filter(({ results }) => results[loss]);

  it.each(known)("$title", async ({ lists, tau, results, means }) => {
    const { losses, grads } = results[loss]!;
    const weight = 1 / lists.length;
    const twin = onTwin(loss, lists, tau, weight);
    for (const [i, value] of [...losses, ...rowsOf(grads, weight)].entries()) {
      expect([...twin.losses, ...twin.grads][i]).toBeCloseTo(value, 8);
    }
    if (means) {
      const mean = twin.losses.reduce((sum, value) => sum + value * weight, 0);
      expect(Math.abs(mean - means[loss])).toBeLessThan(1e-6 * means[loss]);
    }
    for (const subgroup of SUBGROUPS) {
      const gpu = await onGpu(loss, subgroup, lists, tau, weight);
      expect(faults(gpu.losses, losses)).toEqual([]);
      expect(faults(gpu.grads, rowsOf(grads, weight))).toEqual([]);
    }
  });
});

it("has references for every loss, with graded labels where they are taken", () => {
  for (const loss of LOSSES) {
    const titles = references.filter(({ results }) => results[loss]).map(({ title }) => title);
    expect([loss, titles.length]).toEqual([loss, loss === "any_positive" ? 1 : loss === "bce" ? 2 : 4]);
  }
});

const list = (scores: readonly number[], labels: readonly number[]): List => ({ scores, labels });

/** What the twin gives, once both variants of the kernel have given the same. */
async function agreed(loss: LossName, lists: readonly List[], tau: number) {
  const twin = onTwin(loss, lists, tau);
  expect([...twin.losses, ...twin.grads].every(Number.isFinite)).toBe(true);
  for (const subgroup of SUBGROUPS) {
    const gpu = await onGpu(loss, subgroup, lists, tau);
    expect([subgroup, faults(gpu.losses, twin.losses)]).toEqual([subgroup, []]);
    expect([subgroup, faults(gpu.grads, twin.grads)]).toEqual([subgroup, []]);
  }
  return twin;
}

describe.each(LOSSES)("edges of %s", (loss) => {
  it("one candidate", async () => {
    const { losses, grads } = await agreed(loss, [list([0.3], [1])], 0.5);
    const bce = Math.log1p(Math.exp(-0.6));
    expect(losses[0]).toBeCloseTo(loss === "bce" ? bce : 0, 12);
    expect(grads[1]).toBeCloseTo(loss === "bce" ? -2 / (1 + Math.exp(0.6)) : 0, 12);
  });

  it.each([0, 1])("all labels %d", async (label) => {
    const lists = [1, 2, 3, 70].map((m) =>
      list(
        Array.from({ length: m }, (_, i) => Math.sin(i)),
        new Array<number>(m).fill(label),
      ),
    );
    const { losses, grads } = await agreed(loss, lists, 0.2);
    const nothing = { kl: [0], any_positive: [0, 1], ranknet: [0, 1], lambdaloss: [0, 1], approxndcg: [0] };
    if (!(loss in nothing)) return;
    const zero = nothing[loss as keyof typeof nothing].includes(label);
    expect([losses, grads].map((values) => values.every((value) => value === 0))).toEqual([zero, zero]);
  });

  it.each([1e-4, 1e3])("scores across [-1, 1], tau %d", async (tau) => {
    const lists = [1, 2, 100, 300].map((m) =>
      list(
        Array.from({ length: m }, (_, i) => Math.fround(Math.cos(7 * i))),
        Array.from({ length: m }, (_, i) => (i % 3 === 0 ? 1 : 0)),
      ),
    );
    await agreed(loss, lists, tau);
  });

  it("the worst order and the best, z 10,000 apart", async () => {
    const [worst, best] = [list([-1, 1, 0.5], [1, 0, 0]), list([1, -1, -0.5], [1, 0, 0])];
    const { losses } = await agreed(loss, [worst, best], 1e-4);
    expect(losses[0]).toBeGreaterThan(loss === "approxndcg" ? 0.49 : loss === "lambdaloss" ? 5e3 : 3e3);
    if (!["listnet", "listmle", "bce"].includes(loss)) expect(losses[1]).toBeCloseTo(0, 12);
  });

  it("permuting candidates permutes the derivatives", async () => {
    const scores = [0.5, -0.25, 0.75, 0.1, -0.6];
    const labels =
      loss === "bce" ? [0, 1, 0.25, 0.5, 0.75] : loss === "any_positive" ? [0, 1, 0, 1, 0] : [0, 4, 1, 2, 3];
    const order = [3, 0, 4, 2, 1];
    const moved = list(
      order.map((i) => scores[i]),
      order.map((i) => labels[i]),
    );
    const { losses, grads } = await agreed(loss, [list(scores, labels), moved], 0.3);
    expect(losses[1]).toBeCloseTo(losses[0], 12);
    for (const [place, i] of order.entries()) expect(grads[7 + place]).toBeCloseTo(grads[1 + i], 12);
  });
});

it("any_positive where the safe candidates' probability underflows", async () => {
  const { losses, grads } = await agreed("any_positive", [list([-1, -0.5, 1], [1, 1, 0])], 1e-3);
  expect(losses[0]).toBeCloseTo(1500, 9);
  expect(grads).toEqual([0, 0, -1e3, 1e3].map((value) => expect.closeTo(value, 9)));
});

it("checks labels", () => {
  for (const loss of LOSSES) {
    expect([loss, checkLabels(loss, [0, 1, 1])]).toEqual([loss, null]);
    expect(checkLabels(loss, [0, 1, Number.NaN])).toBe("label NaN of candidate 2: not a finite number");
    expect(checkLabels(loss, [Number.POSITIVE_INFINITY])).toMatch("finite");
  }
  const wrong = (labels: readonly number[]) => LOSSES.filter((loss) => checkLabels(loss, labels) !== null);
  expect(wrong([0, 0])).toEqual(["kl"]);
  expect(wrong([1, 3, 0])).toEqual(["any_positive", "bce"]);
  expect(wrong([1, 0.5])).toEqual(["any_positive"]);
  expect(wrong([1, -1])).toEqual(["kl", "lambdaloss", "approxndcg", "any_positive", "bce"]);
  expect(wrong([31, 0])).toEqual(["lambdaloss", "approxndcg", "any_positive", "bce"]);
  expect(checkLabels("kl", [1, -1])).toBe("label -1 of candidate 1: kl takes labels from 0");
});

it("frees its buffers", () => {
  expect(engine.device.liveBytes).toBe(0);
});
