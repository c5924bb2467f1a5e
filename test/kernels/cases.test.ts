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
  const op = kernel.name === "matmul" ? `matmul ${field("epilogue")}` : kernel.name;
  const type = (field("weight") ?? "f32") as WeightType;
  const tolerance = TOLERANCES[op]?.[type];
  if (tolerance === undefined) throw new Error(`no tolerance for ${op} ${type}`);
  return tolerance;
}

/** The writable binding of a case as floats. */
function output(kernel: Kernel, buffers: Readonly<Record<string, TwinBuffer>>): Float32Array {
  const [binding, ...others] = kernel.bindings.filter(({ access }) => access === "read_write");
  expect(others).toEqual([]);
  const buffer = buffers[binding.name];
  expect(buffer).toBeInstanceOf(Float32Array);
  return buffer as Float32Array;
}

describe.each([...new Set(cases.map(({ kernel }) => kernel.name))])("%s", (op) => {
  const own = cases.filter(({ kernel }) => kernel.name === op);

  it.each(own)("$title", async ({ kernel, rows, offset, buffers, twin }) => {
    const [given, expected, before] = [buffers(), buffers(), buffers()];
    twin(expected);
    const result = await runKernel(engine.device, engine.pipelines, kernel, given, rows, offset);
    const [got, wanted, untouched] = [result, expected, before].map((set) => output(kernel, set));

    // The twin must have written numbers worth comparing: not the buffer as it was, nor zeros, nor mostly NaN.
    const written = wanted.filter((value, i) => !Object.is(value, untouched[i]));
    const telling = written.filter((value) => Number.isFinite(value) && value !== 0);
    expect(telling.length).toBeGreaterThan(0);
    expect(telling.length / written.length).toBeGreaterThan(0.7);

    expect(compareWithin(got, wanted, toleranceOf(kernel)).wrong).toEqual([]);
  });
});

it("covers every op, every weight type, and both kinds of variant", () => {
  expect(new Set(cases.map(({ kernel }) => kernel.name))).toEqual(
    new Set(["matmul", "rmsNorm", "rope", "rowGather", "cosine", "attention"]),
  );
  for (const op of ["matmul", "rmsNorm", "cosine", "attention"]) {
    const kinds = new Set(cases.filter(({ kernel }) => kernel.name === op).map(({ kernel }) => kernel.subgroups));
    expect([op, kinds]).toEqual([op, new Set(engine.target.subgroupSize > 0 ? [true, false] : [false])]);
  }
  for (const epilogue of ["store", "add", "swiglu"]) {
    for (const weight of ["f32", "bf16", "f16"]) {
      const fits = ({ kernel }: { kernel: Kernel }) =>
        [`epilogue:${epilogue}`, `weight:${weight}`].every((text) => kernel.key.includes(text));
      expect([epilogue, weight, cases.some(fits)]).toEqual([epilogue, weight, true]);
    }
  }
});

it("frees its buffers", () => {
  expect(engine.device.liveBytes).toBe(0);
});
