/** The graphs that peers are given: what their bytes hold, read back with the schema of the format. */
import { fromBinary } from "@bufbuild/protobuf";
import { type GraphProto, ModelProtoSchema, TensorProto_DataType } from "onnx-buf";
import { describe, expect, it } from "vitest";
import type { LlamaShape, StackJob } from "../../bench/jobs.ts";
import { onnxGraph } from "../../bench/onnx.ts";
import { onnxJob } from "../../bench/onnx-jobs.ts";

const SHAPE: LlamaShape = {
  hidden: 12,
  heads: 4,
  kvHeads: 2,
  headDim: 4,
  ffn: 20,
  vocab: 30,
  layers: 3,
  ropeTheta: 1e4,
  eps: 1e-5,
};
const STACK: StackJob = { kind: "stack", shape: SHAPE, batch: 2, tokens: 5, layer: 2, seed: 1 };

function graphOf(bytes: Uint8Array): GraphProto {
  return fromBinary(ModelProtoSchema, bytes).graph!;
}

const floats = (bytes: Uint8Array) => [...new Float32Array(bytes.slice().buffer)];
const integers = (bytes: Uint8Array) => [...new BigInt64Array(bytes.slice().buffer)].map(Number);

describe("an ONNX graph", () => {
  it("is what was built, after a way through its bytes", () => {
    const built = onnxGraph();
    const x = built.input("x", [2, 3]);
    const product = built.node("MatMul", [x, built.constant([3, 2], Float32Array.of(1, 2, 3, 4, 5, 6.5))]);
    const shape = built.integers([4, -1]);
    expect(built.integers([4, -1])).toBe(shape);
    const y = built.node("Softmax", [built.node("Reshape", [product, shape])], { axis: -1 }, "y");
    built.output(built.node("Transpose", [y], { perm: [1, 0] }, "z"), [1, 4]);

    const model = fromBinary(ModelProtoSchema, built.bytes());
    expect(model.opsetImport.map(({ domain, version }) => [domain, version])).toEqual([["", 18n]]);
    const graph = model.graph!;
    expect(graph.node.map(({ opType, input, output }) => [opType, input.length, output.length])).toEqual([
      ["MatMul", 2, 1],
      ["Reshape", 2, 1],
      ["Softmax", 1, 1],
      ["Transpose", 1, 1],
    ]);
    expect(graph.node[2].attribute.map(({ name, i }) => [name, i])).toEqual([["axis", -1n]]);
    expect(graph.node[3].attribute.map(({ name, ints }) => [name, ints])).toEqual([["perm", [1n, 0n]]]);
    const [matrix, dims] = graph.initializer;
    expect([matrix.dataType, matrix.dims, floats(matrix.rawData)]).toEqual([
      TensorProto_DataType.FLOAT,
      [3n, 2n],
      [1, 2, 3, 4, 5, 6.5],
    ]);
    expect([dims.dataType, integers(dims.rawData)]).toEqual([TensorProto_DataType.INT64, [4, -1]]);
    expect(graph.input[0].type?.value.value).toMatchObject({
      shape: { dim: [{ value: { value: 2n } }, { value: { value: 3n } }] },
    });
    expect(graph.output.map(({ name }) => name)).toEqual(["z"]);
  });

  it.each([
    ["stack", onnxJob(STACK)],
    ["rank", onnxJob({ kind: "rank", shape: SHAPE, prompt: 3, candidates: 2, tokens: 2, layer: 1, seed: 1 })],
    ["matmul", onnxJob({ kind: "matmul", rows: 3, k: 4, n: 5, seed: 1 })],
  ])("of %s uses plain operators, and no value before it is made", (_, { model, result, end }) => {
    const graph = graphOf(model);
    const known = new Set([...graph.input, ...graph.initializer].map(({ name }) => name));
    for (const { opType, domain, input, output } of graph.node) {
      expect(domain).toBe("");
      expect(opType).not.toMatch(/Attention|LayerNormalization|RotaryEmbedding/);
      for (const name of input) expect(known).toContain(name);
      for (const name of output) {
        expect(known).not.toContain(name);
        known.add(name);
      }
    }
    expect(graph.output.map(({ name }) => name)).toEqual([...new Set([result, end])]);
    for (const { name } of graph.output) expect(known).toContain(name);
    for (const { dims, rawData, dataType } of graph.initializer) {
      const bytes = dataType === TensorProto_DataType.INT64 ? 8 : 4;
      expect(rawData.byteLength).toBe(dims.reduce((size, dim) => size * Number(dim), bytes));
    }
  });

  it("has a block's operators once a block", () => {
    const count = (layer: number) => graphOf(onnxJob({ ...STACK, layer }).model).node.length;
    expect(count(3) - count(2)).toBe(count(2) - count(1));
    expect(count(2)).toBeGreaterThan(count(1));
  });
});
