/** TensorFlow.js on its WebGPU backend. */
import type { Tensor, Tensor2D, Tensor3D } from "@tensorflow/tfjs-core";
import { provideGpu } from "../gpu.ts";
import type { Job, LlamaJob, MatmulJob } from "../jobs.ts";
import { blockWeights, causalMask, embeddedSequences, ropeTables, type Weight } from "../llama.ts";
import { matmulOperands } from "../operands.ts";
import type { Prepared } from "../protocol.ts";
import { transpose } from "../values.ts";

type Tf = typeof import("@tensorflow/tfjs-core");

export async function prepare(job: Job): Promise<Prepared> {
  const adapter = await provideGpu();
  // It looks for navigator.gpu when it is imported.
  const tf = await import("@tensorflow/tfjs-core");
  await import("@tensorflow/tfjs-backend-webgpu");
  await tf.setBackend("webgpu");
  await tf.ready();
  return { adapter, run: job.kind === "matmul" ? matmulRun(tf, job) : llamaRun(tf, job) };
}

function matmulRun(tf: Tf, job: MatmulJob): Prepared["run"] {
  const { rows, k, n } = job;
  const { x, weight } = matmulOperands(job);
  const a = tf.tensor2d(x, [rows, k]);
  const b = tf.tensor2d(transpose(weight, n, k), [k, n]);
  return async (full) => {
    const begin = performance.now();
    const y = tf.matMul(a, b);
    // Reading a row waits for the whole product.
    const end = full ? y : tf.slice(y, [rows - 1, 0], [1, n]);
    const output = (await end.data()) as Float32Array;
    const ms = performance.now() - begin;
    tf.dispose([y, end]);
    return { ms, output: full ? output : null };
  };
}

function llamaRun(tf: Tf, job: LlamaJob): Prepared["run"] {
  const { shape, seed, layer } = job;
  const { heads: h, kvHeads: g, headDim: e, hidden: d } = shape;
  const input = embeddedSequences(job);
  const [batch, tokens] = input.dims;
  const upload = ({ dims, values }: Weight): Tensor => tf.tensor(values, [...dims]);
  const tables = ropeTables(shape, tokens);
  const [cos, sin, mask] = [upload(tables.cos), upload(tables.sin), upload(causalMask(shape, tokens))];
  const blocks = Array.from({ length: layer }, (_, block) => {
    const weights = Object.entries(blockWeights(shape, seed, block));
    return Object.fromEntries(weights.map(([role, weight]) => [role, upload(weight)])) as Record<
      keyof ReturnType<typeof blockWeights>,
      Tensor2D
    >;
  });

  const norm = (x: Tensor, weight: Tensor) => {
    const mean = tf.mean(tf.mul(x, x), -1, true);
    return tf.mul(tf.div(x, tf.sqrt(tf.add(mean, shape.eps))), weight);
  };
  const split = (x: Tensor, count: number) => tf.transpose(tf.reshape(x, [batch, tokens, count, e]), [0, 2, 1, 3]);
  const rope = (x: Tensor) => {
    const [left, right] = tf.split(x, 2, 3);
    return tf.add(tf.mul(x, cos), tf.mul(tf.concat([tf.neg(right), left], 3), sin));
  };
  const runBlock = (x: Tensor2D, w: (typeof blocks)[number]): Tensor2D => {
    const normed = norm(x, w.inputNorm) as Tensor2D;
    // The heads that share keys stand one below the other: no key is repeated.
    const q = tf.reshape(rope(split(tf.matMul(normed, w.q), h)), [batch * g, (h / g) * tokens, e]) as Tensor3D;
    const k = tf.reshape(rope(split(tf.matMul(normed, w.k), g)), [batch * g, tokens, e]) as Tensor3D;
    const v = tf.reshape(split(tf.matMul(normed, w.v), g), [batch * g, tokens, e]) as Tensor3D;
    const scores = tf.add(tf.mul(tf.matMul(q, k, false, true), 1 / Math.sqrt(e)), mask);
    const mixed = tf.matMul(tf.softmax(scores) as Tensor3D, v);
    const heads = tf.transpose(tf.reshape(mixed, [batch, h, tokens, e]), [0, 2, 1, 3]);
    const y = tf.add(x, tf.matMul(tf.reshape(heads, [batch * tokens, h * e]) as Tensor2D, w.o));
    const inner = norm(y, w.postNorm) as Tensor2D;
    const gate = tf.matMul(inner, w.gate);
    const gated = tf.mul(tf.mul(gate, tf.sigmoid(gate)), tf.matMul(inner, w.up)) as Tensor2D;
    return tf.add(y, tf.matMul(gated, w.down));
  };
  return async (full) => {
    const begin = performance.now();
    const last = tf.tidy(() => {
      let x = tf.tensor2d(input.values, [batch * tokens, d]);
      for (const weights of blocks) x = tf.tidy(() => runBlock(x, weights));
      return tf.slice(tf.reshape(x, [batch, tokens, d]), [0, tokens - 1, 0], [batch, 1, d]);
    });
    const output = (await last.data()) as Float32Array;
    const ms = performance.now() - begin;
    last.dispose();
    return { ms, output: full ? output : null };
  };
}
