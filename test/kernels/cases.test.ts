import { afterAll, describe, expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import { kernelCases } from "../../kernels/cases.ts";
import type { Kernel, TwinBuffer, WeightType } from "../../kernels/kernel.ts";
import { compareWithin } from "../support/compare.ts";
import { TOLERANCES } from "../support/tolerances.ts";

// Here and not in a hook: the list of cases depends on the device, and a missing adapter fails the file.
const engine = await createEngine();
afterAll(() => engine[Symbol.dispose]());

const cases = kernelCases(engine.target);

/** The line and column of the tolerance table that a kernel belongs to. */
function toleranceOf(kernel: Kernel) {
  const field = (name: string) => new RegExp(`[{,]${name}:([^,}]+)`).exec(kernel.key)?.[1];
  const product = field("activation") === undefined ? field("epilogue") : "activation";
  const op = kernel.name === "matmul" ? `matmul ${product}` : kernel.name;
  const type = (field("weight") ?? "f32") as WeightType;
  const tolerance = TOLERANCES[op]?.[type];
  if (tolerance === undefined) throw new Error(`no tolerance for ${op} ${type}`);
  return tolerance;
}

/** The writable bindings of a case as floats: words compare as numbers. */
function outputs(kernel: Kernel, buffers: Readonly<Record<string, TwinBuffer>>): [name: string, Float32Array][] {
  const written = kernel.bindings.filter(({ access }) => access === "read_write");
  return written.map(({ name }) => {
    const buffer = buffers[name];
    return [name, buffer instanceof Float32Array ? buffer : Float32Array.from(buffer)];
  });
}

describe.each([...new Set(cases.map(({ kernel }) => kernel.name))])("%s", (op) => {
  const own = cases.filter(({ kernel }) => kernel.name === op);

  it.each(own)("$title", async ({ kernel, rows, offset, buffers, twin }) => {
    const [given, expected, before] = [buffers(), buffers(), buffers()];
    twin(expected);
    const result = await runKernel(engine.device, engine.pipelines, kernel, given, rows, offset);
    const [got, wanted, untouched] = [result, expected, before].map((set) => outputs(kernel, set));
    expect(wanted.length).toBeGreaterThan(0);

    for (const [i, [name, values]] of wanted.entries()) {
      // The twin must have written numbers worth comparing: not the buffer as it was, nor zeros, nor mostly NaN.
      const written = values.filter((value, j) => !Object.is(value, untouched[i][1][j]));
      const telling = written.filter((value) => Number.isFinite(value) && value !== 0);
      expect([name, telling.length > 0]).toEqual([name, true]);
      expect(telling.length / written.length).toBeGreaterThan(0.7);

      expect([name, compareWithin(got[i][1], values, toleranceOf(kernel)).wrong]).toEqual([name, []]);
    }
  });
});

it("covers every op, every weight type, and both kinds of variant", () => {
  expect(new Set(cases.map(({ kernel }) => kernel.name))).toEqual(
    new Set([
      ...["matmul", "norm", "rope", "rowGather", "spanMean", "cosine", "attention"],
      ...["matmulWeightGrad", "columnSum", "layerNorm", "layerNormGrad", "gelu", "geluGrad", "dropoutRows"],
      ...["listAttention", "listAttentionGrad", "listCosine", "listCosineGrad", "standardise", "canonicalOrder"],
      ...["listLoss", "adamw", "squareSum", "stepStatus"],
    ]),
  );
  for (const op of [
    ...["matmul", "norm", "cosine", "attention"],
    ...["matmulWeightGrad", "layerNorm", "layerNormGrad", "listCosine", "squareSum", "listLoss"],
  ]) {
    const kinds = new Set(cases.filter(({ kernel }) => kernel.name === op).map(({ kernel }) => kernel.subgroups));
    expect([op, kinds]).toEqual([op, new Set(engine.target.subgroupSize > 0 ? [true, false] : [false])]);
  }
  for (const epilogue of ["store", "add", "glu"]) {
    for (const weight of ["f32", "bf16", "f16", "int8", "int4"]) {
      const fits = ({ kernel }: { kernel: Kernel }) =>
        [`epilogue:${epilogue}`, `weight:${weight}`].every((text) => kernel.key.includes(text));
      expect([epilogue, weight, cases.some(fits)]).toEqual([epilogue, weight, true]);
    }
  }
});

it("frees its buffers", () => {
  expect(engine.device.liveBytes).toBe(0);
});
