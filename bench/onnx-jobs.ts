/**
 * The jobs as ONNX graphs. Plain operators only: onnxruntime's fused attention returns wrong states on software adapters.
 */
import type { Job, LlamaJob, MatmulJob } from "./jobs.ts";
import { blockWeights, causalMask, embeddedSequences, ropeTables, type Weight } from "./llama.ts";
import { type OnnxGraph, onnxGraph, type Value } from "./onnx.ts";
import { matmulOperands } from "./operands.ts";
import { transpose } from "./values.ts";

export interface OnnxJob {
  readonly model: Uint8Array<ArrayBuffer>;
  /** The input `x`. */
  readonly input: Weight;
  /** The output that holds the job's result. */
  readonly result: string;
  /** An output that is small, and cannot be had without the whole job. */
  readonly end: string;
}

/** The graph of a job with its weights. */
export function onnxJob(job: Job): OnnxJob {
  return job.kind === "matmul" ? matmulGraph(job) : llamaGraph(job);
}

function matmulGraph(job: MatmulJob): OnnxJob {
  const { rows, k, n } = job;
  const { x, weight } = matmulOperands(job);
  const graph = onnxGraph();
  const turned = graph.constant([k, n], transpose(weight, n, k));
  const y = graph.node("MatMul", [graph.input("x", [rows, k]), turned], {}, "y");
  // Reading a row waits for the whole product without copying it.
  const row = graph.node("Slice", [y, graph.integers([rows - 1]), graph.integers([rows]), graph.integers([0])]);
  graph.output(y, [rows, n]);
  graph.output(row, [1, n]);
  return { model: graph.bytes(), input: { dims: [rows, k], values: x }, result: y, end: row };
}

function constant(graph: OnnxGraph, { dims, values }: Weight): Value {
  return graph.constant(dims, values);
}

/** A graph's operators by their mathematical names. */
function operators(graph: OnnxGraph) {
  const { node, integers } = graph;
  return {
    add: (a: Value, b: Value) => node("Add", [a, b]),
    mul: (a: Value, b: Value) => node("Mul", [a, b]),
    matmul: (a: Value, b: Value) => node("MatMul", [a, b]),
    reshape: (a: Value, dims: readonly number[]) => node("Reshape", [a, integers(dims)]),
    transpose: (a: Value, perm: readonly number[]) => node("Transpose", [a], { perm }),
    slice: (a: Value, from: number, to: number, axis: number) =>
      node("Slice", [a, integers([from]), integers([to]), integers([axis])]),
  };
}

function llamaGraph(job: LlamaJob): OnnxJob {
  const { shape, seed, layer } = job;
  const { heads: h, kvHeads: g, headDim: e, hidden: d } = shape;
  const input = embeddedSequences(job);
  const [batch, tokens] = input.dims;
  const graph = onnxGraph();
  const { add, mul, matmul, reshape, transpose, slice } = operators(graph);
  const scalar = (value: number) => graph.constant([1], Float32Array.of(value));
  const eps = scalar(shape.eps);
  const scale = scalar(1 / Math.sqrt(e));
  const mask = constant(graph, causalMask(shape, tokens));
  const tables = ropeTables(shape, tokens);
  const [cos, sin] = [constant(graph, tables.cos), constant(graph, tables.sin)];

  const norm = (x: Value, weight: Value) => {
    const mean = graph.node("ReduceMean", [mul(x, x), graph.integers([-1])], { keepdims: 1 });
    return mul(graph.node("Div", [x, graph.node("Sqrt", [add(mean, eps)])]), weight);
  };
  const split = (x: Value, count: number) => transpose(reshape(x, [batch, tokens, count, e]), [0, 2, 1, 3]);
  const rope = (x: Value) => {
    const [left, right] = [slice(x, 0, e / 2, 3), slice(x, e / 2, e, 3)];
    const turned = graph.node("Concat", [graph.node("Neg", [right]), left], { axis: 3 });
    return add(mul(x, cos), mul(turned, sin));
  };

  let x = graph.input("x", input.dims);
  for (let block = 0; block < layer; block++) {
    const w = blockWeights(shape, seed, block);
    const normed = norm(x, constant(graph, w.inputNorm));
    const project = (weight: Weight) => matmul(normed, constant(graph, weight));
    // The heads that share keys stand one below the other: no key is repeated.
    const q = reshape(rope(split(project(w.q), h)), [batch, g, (h / g) * tokens, e]);
    const k = rope(split(project(w.k), g));
    const v = split(project(w.v), g);
    const scores = add(mul(matmul(q, transpose(k, [0, 1, 3, 2])), scale), mask);
    const mixed = matmul(graph.node("Softmax", [scores], { axis: -1 }), v);
    const rows = reshape(transpose(reshape(mixed, [batch, h, tokens, e]), [0, 2, 1, 3]), [batch, tokens, h * e]);
    x = add(x, matmul(rows, constant(graph, w.o)));
    const inner = norm(x, constant(graph, w.postNorm));
    const gate = matmul(inner, constant(graph, w.gate));
    const gated = mul(mul(gate, graph.node("Sigmoid", [gate])), matmul(inner, constant(graph, w.up)));
    x = add(x, matmul(gated, constant(graph, w.down)));
  }
  const last = reshape(slice(x, tokens - 1, tokens, 1), [batch, d]);
  graph.output(last, [batch, d]);
  return { model: graph.bytes(), input, result: last, end: last };
}
