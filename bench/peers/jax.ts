/** jax-js, compiled with its `jit`. Its arrays are counted: every use but the last takes a `ref`. */
import type { numpy } from "@jax-js/jax";
import { StratumError } from "../../errors.ts";
import { provideGpu } from "../gpu.ts";
import type { Job, LlamaJob, MatmulJob } from "../jobs.ts";
import { blockWeights, causalMask, embeddedSequences, ropeTables, type Weight } from "../llama.ts";
import { matmulOperands } from "../operands.ts";
import type { Prepared } from "../protocol.ts";
import { transpose } from "../values.ts";

type Jax = typeof import("@jax-js/jax");
type Arr = numpy.Array;

export async function prepare(job: Job): Promise<Prepared> {
  const adapter = await provideGpu();
  const jax = await import("@jax-js/jax");
  const ready = await jax.init("webgpu");
  if (!ready.includes("webgpu")) {
    throw new StratumError(
      "adapter/none",
      `jax-js finds no WebGPU here, only ${ready.join(", ")}`,
      "see stratum doctor",
    );
  }
  jax.defaultDevice("webgpu");
  return { adapter, run: job.kind === "matmul" ? matmulRun(jax, job) : llamaRun(jax, job) };
}

function upload({ numpy: np }: Jax, { dims, values }: Weight): Arr {
  return np.array(values).reshape([...dims]);
}

function matmulRun(jax: Jax, job: MatmulJob): Prepared["run"] {
  const { rows, k, n } = job;
  const { x, weight } = matmulOperands(job);
  const a = upload(jax, { dims: [rows, k], values: x });
  const b = upload(jax, { dims: [k, n], values: transpose(weight, n, k) });
  const product = jax.jit((p: Arr, q: Arr) => jax.numpy.matmul(p, q));
  return async (full) => {
    const begin = performance.now();
    const y = product(a.ref, b.ref);
    await y.blockUntilReady();
    const ms = performance.now() - begin;
    if (full) return { ms, output: (await y.data()) as Float32Array };
    y.dispose();
    return { ms, output: null };
  };
}

type Block = Record<keyof ReturnType<typeof blockWeights>, Arr>;

function llamaRun(jax: Jax, job: LlamaJob): Prepared["run"] {
  const { numpy: np, nn, jit } = jax;
  const { shape, seed, layer } = job;
  const { heads: h, kvHeads: g, headDim: e, hidden: d } = shape;
  const input = embeddedSequences(job);
  const [batch, tokens] = input.dims;
  const tables = ropeTables(shape, tokens);
  const [cos, sin] = [upload(jax, tables.cos), upload(jax, tables.sin)];
  const mask = upload(jax, causalMask(shape, tokens));
  const blocks = Array.from({ length: layer }, (_, block) => {
    const weights = Object.entries(blockWeights(shape, seed, block));
    return Object.fromEntries(weights.map(([role, weight]) => [role, upload(jax, weight)])) as Block;
  });

  const norm = (x: Arr, weight: Arr) => {
    const mean = np.mean(np.square(x.ref), -1, { keepdims: true });
    return x.div(np.sqrt(mean.add(shape.eps))).mul(weight);
  };
  const split = (x: Arr, count: number) => x.reshape([batch, tokens, count, e]).transpose([0, 2, 1, 3]);
  const rope = (x: Arr, c: Arr, s: Arr) => {
    const [left, right] = np.split(x.ref, 2, 3);
    return x.mul(c).add(np.concatenate([right.neg(), left], 3).mul(s));
  };
  const runBlock = jit((x: Arr, w: Block, c: Arr, s: Arr, m: Arr) => {
    const normed = norm(x.ref, w.inputNorm);
    // The heads that share keys stand one below the other: no key is repeated.
    const q = rope(split(np.matmul(normed.ref, w.q), h), c.ref, s.ref).reshape([batch * g, (h / g) * tokens, e]);
    const k = rope(split(np.matmul(normed.ref, w.k), g), c, s).reshape([batch * g, tokens, e]);
    const v = split(np.matmul(normed, w.v), g).reshape([batch * g, tokens, e]);
    const scores = np
      .matmul(q, k.transpose([0, 2, 1]))
      .mul(1 / Math.sqrt(e))
      .add(m);
    const mixed = np.matmul(nn.softmax(scores, -1), v).reshape([batch, h, tokens, e]);
    const y = x.add(np.matmul(mixed.transpose([0, 2, 1, 3]).reshape([batch * tokens, h * e]), w.o));
    const inner = norm(y.ref, w.postNorm);
    const gated = nn.silu(np.matmul(inner.ref, w.gate)).mul(np.matmul(inner, w.up));
    return y.add(np.matmul(gated, w.down));
  });
  const lastOf = jit((x: Arr) => x.reshape([batch, tokens, d]).slice([], tokens - 1));
  return async (full) => {
    const begin = performance.now();
    let x = np.array(input.values).reshape([batch * tokens, d]);
    for (const weights of blocks) {
      const refs = Object.fromEntries(Object.entries(weights).map(([role, array]) => [role, array.ref])) as Block;
      x = runBlock(x, refs, cos.ref, sin.ref, mask.ref);
    }
    const output = (await lastOf(x).data()) as Float32Array;
    const ms = performance.now() - begin;
    return { ms, output: full ? output : null };
  };
}
