/**
 * The scorer on the GPU: shared projection, post-norm encoder layer over [instruction, candidates] without positions,
 * cosine (SRR, arXiv 2505.15710); without the attention sub-block it is the pointwise head. Forward and backward over
 * lists that lie one after another in the rows of one batch: ragged, no padding.
 */
import type { Device } from "../engine/device.ts";
import type { DeviceBuffer } from "../engine/device-memory.ts";
import type { Engine } from "../engine/model.ts";
import type { BoundBuffer, Pipeline } from "../engine/pipelines.ts";
import type { PlannedBuffer } from "../engine/planned-buffer.ts";
import type { Recorder } from "../engine/recorder.ts";
import { columnSum } from "../kernels/column-sum.ts";
import { type DropoutVariant, NO_DROPOUT } from "../kernels/dropout.ts";
import { dropoutRows } from "../kernels/dropout-rows.ts";
import { gelu, geluGrad } from "../kernels/gelu.ts";
import { type Extent, type Kernel, PARAMS_BYTES, type Target } from "../kernels/kernel.ts";
import { layerNorm, layerNormGrad } from "../kernels/layer-norm.ts";
import { listAttention } from "../kernels/list-attention.ts";
import { listAttentionGrad } from "../kernels/list-attention-grad.ts";
import { listCosine, listCosineGrad } from "../kernels/list-cosine.ts";
import { bufferTile, type MatmulVariant, matmul } from "../kernels/matmul.ts";
import { matmulWeightGrad, matmulWeightGradTile } from "../kernels/matmul-weight-grad.ts";
import { type ParameterLayout, parameterLayout } from "./parameter-layout.ts";
import type { ScorerSpec } from "./scorer-spec.ts";

/** torch.nn.LayerNorm's own. */
const LAYER_NORM_EPS = 1e-5;

const LINEARS = ["proj", "inProj", "outProj", "linear1", "linear2"] as const;
const NORMS = ["norm1", "norm2"] as const;
type Linear = (typeof LINEARS)[number];
type Norm = (typeof NORMS)[number];

const LAYER = "encoder.layers.0.";
const NAMES: Readonly<Record<ScorerSpec["head"], Readonly<Partial<Record<Linear | Norm, string>>>>> = {
  listwise: {
    proj: "proj.",
    inProj: `${LAYER}self_attn.in_proj_`,
    outProj: `${LAYER}self_attn.out_proj.`,
    linear1: `${LAYER}linear1.`,
    linear2: `${LAYER}linear2.`,
    norm1: `${LAYER}norm1.`,
    norm2: `${LAYER}norm2.`,
  },
  pointwise: { proj: "proj.", linear1: "linear1.", linear2: "linear2.", norm2: "norm." },
};

/** The places of dropout in torch.nn.TransformerEncoderLayer, and at the features. */
const SITES = { attention: 1, norm1: 2, ffn: 3, norm2: 4, input: 5 } as const;

/** Buffers of a network for batches of R rows. */
export const FORWARD_BUFFERS = [
  ...["x", "spans", "h", "qkv", "attended", "lse", "projected", "y1", "xhat1", "rstd1"],
  ...["u", "f", "ffn", "y2", "xhat2", "rstd2", "cosines", "params"],
] as const;
const BACKWARD_BUFFERS = ["scoreGrads", "dy2", "dy1", "dffn", "df", "dh", "dprojected", "dattended", "delta", "dqkv"];

/** The plan of everything that a network holds, by name. */
export function planNetwork(spec: ScorerSpec, rows: number, training: boolean): Map<string, PlannedBuffer> {
  const { dim, width, ffn, heads, head } = spec;
  const columns: Readonly<Record<string, number>> = {
    ...{ x: dim, spans: 2, h: width, qkv: 3 * width, attended: width, lse: heads, projected: width },
    ...{ y1: width, xhat1: width, rstd1: 1, u: ffn, f: ffn, ffn: width, y2: width, xhat2: width, rstd2: 1, cosines: 2 },
    ...{ scoreGrads: 1, dy2: width, dy1: width, dffn: width, df: ffn, dh: width, dprojected: width },
    ...{ dattended: width, delta: heads, dqkv: 3 * width },
  };
  const onlyListwise = ["qkv", "attended", "lse", "projected", "y1", "xhat1", "rstd1"];
  const onlyListwiseBack = ["dh", "dprojected", "dattended", "delta", "dqkv"];
  const names = [...FORWARD_BUFFERS, ...(training ? BACKWARD_BUFFERS : [])].filter(
    (name) => name !== "params" && (head === "listwise" || ![...onlyListwise, ...onlyListwiseBack].includes(name)),
  );
  const plan = new Map<string, PlannedBuffer>(
    names.map((name) => [name, { label: `scorer.${name}`, bytes: 4 * rows * columns[name], use: "storage" as const }]),
  );
  plan.set("params", { label: "scorer.params", bytes: PARAMS_BYTES, use: "uniform" });
  const flat = 4 * parameterLayout(spec).count;
  plan.set("weights", { label: "scorer.weights", bytes: flat, use: "storage" });
  if (training) plan.set("grads", { label: "scorer.grads", bytes: flat, use: "storage" });
  return plan;
}

export interface NetworkOptions {
  /** Rows of a batch, at most. */
  readonly rows: number;
  /** Makes the backward pass possible; the rate of the dropouts within the network, and of that at its features. */
  readonly training?: { readonly dropout: number; readonly inputDropout?: number } | undefined;
}

/** A scorer on the GPU. Disposing it frees its buffers, weights included. */
export interface Network extends Disposable {
  readonly spec: ScorerSpec;
  readonly layout: ParameterLayout;
  readonly rows: number;
  /** (N) flat, see {@link parameterLayout}. */
  readonly weights: DeviceBuffer;
  /** (N) accumulated by `backward`; absent without training. */
  readonly grads: DeviceBuffer | undefined;
  /** Working buffers by name. The caller fills x (R, D) and, by {@link begin}, the rest of the input. */
  readonly buffers: Readonly<Record<string, DeviceBuffer>>;
  readonly bytes: number;
  /** Sets the batch: spans (R) of (first row, end row) of each row's list. */
  begin(spans: Uint32Array<ArrayBuffer>): void;
  /** Records x -> cosines (R) of (score, 1 / norm). With `counter` (training) dropout is applied. */
  forward(recorder: Recorder, counter?: DeviceBuffer): void;
  /** Records scoreGrads (R) -> grads +=; the forward pass with the same counter must have run on this batch. */
  backward(recorder: Recorder, counter: DeviceBuffer): void;
}

/** Makes the buffers of a plan, all or none. @throws {StratumError} `memory/buffer-limit` */
export function allocate(
  device: Device,
  plan: ReadonlyMap<string, PlannedBuffer>,
): { buffers: Record<string, DeviceBuffer>; release: () => void } {
  const buffers: Record<string, DeviceBuffer> = {};
  const release = () => {
    for (const buffer of Object.values(buffers)) buffer.destroy();
  };
  try {
    for (const [name, { label, bytes, use }] of plan) buffers[name] = device.createBuffer(label, bytes, use);
  } catch (cause) {
    release();
    throw cause;
  }
  return { buffers, release };
}

interface Kernels {
  readonly forward: Readonly<Record<string, Pipeline>>;
  readonly backward: Readonly<Record<string, Pipeline>>;
}

function linearSizes(spec: ScorerSpec): Readonly<Record<Linear, { k: number; n: number }>> {
  const { dim, width, ffn } = spec;
  return {
    proj: { k: dim, n: width },
    inProj: { k: width, n: 3 * width },
    outProj: { k: width, n: width },
    linear1: { k: width, n: ffn },
    linear2: { k: ffn, n: width },
  };
}

/** A product with a weight, or with `transposed` with its transpose. */
function product(target: Target, k: number, n: number, epilogue: "store" | "add", transposed: boolean): Kernel {
  const variant: MatmulVariant = {
    ...{ k, n, weight: "f32", epilogue, bias: !transposed, outStride: n, outOffset: 0 },
    ...bufferTile(target, { k, n, epilogue }),
    ...(transposed ? { transposed } : {}),
  };
  return matmul(variant);
}

function forwardKernels(spec: ScorerSpec, target: Target, rate: number): Record<string, Kernel> {
  const { width, heads, ffn, head } = spec;
  const at = (site: number): DropoutVariant => (rate > 0 ? { rate, site } : NO_DROPOUT);
  const subgroup = target.subgroupSize;
  const norm = (site: number) => layerNorm({ width, eps: LAYER_NORM_EPS, dropout: at(site), subgroup });
  const linears = Object.entries(linearSizes(spec))
    .filter(([name]) => name in NAMES[head])
    .map(([name, { k, n }]) => [name, product(target, k, n, "store", false)] as const);
  return {
    ...Object.fromEntries(linears),
    ...(head === "listwise"
      ? { attention: listAttention({ width, heads, dropout: at(SITES.attention) }), norm1: norm(SITES.norm1) }
      : {}),
    gelu: gelu({ width: ffn, dropout: at(SITES.ffn) }),
    norm2: norm(SITES.norm2),
    cosine: listCosine({ width, subgroup }),
  };
}

function backwardKernels(spec: ScorerSpec, target: Target, rate: number): Record<string, Kernel> {
  const { width, heads, ffn, head } = spec;
  const at = (site: number): DropoutVariant => (rate > 0 ? { rate, site } : NO_DROPOUT);
  const norm = (site: number) =>
    layerNormGrad({ width, eps: LAYER_NORM_EPS, dropout: at(site), subgroup: target.subgroupSize });
  const kernels: Record<string, Kernel> = {
    cosine: listCosineGrad({ width }),
    norm2: norm(SITES.norm2),
    normWeight: columnSum({ n: width, product: true }),
    normBias: columnSum({ n: width, product: false }),
    gelu: geluGrad({ width: ffn, dropout: at(SITES.ffn) }),
  };
  if (head === "listwise") {
    kernels["norm1"] = norm(SITES.norm1);
    for (const side of ["query", "keyValue"] as const)
      kernels[side] = listAttentionGrad({ width, heads, dropout: at(SITES.attention), side });
  }
  for (const [name, { k, n }] of Object.entries(linearSizes(spec))) {
    if (!(name in NAMES[head])) continue;
    kernels[`${name}.weight`] = matmulWeightGrad({ n, k, ...matmulWeightGradTile(target, k) });
    kernels[`${name}.bias`] = columnSum({ n, product: false });
    // The features' own gradient is of no use; the gradients that join a residual are added to it.
    const epilogue = name === "linear1" || name === "inProj" ? "add" : "store";
    if (name !== "proj") kernels[`${name}.input`] = product(target, n, k, epilogue, true);
  }
  return kernels;
}

/** Pairs of rows of one list: a row's list is its span (first row, end). */
function pairsOf(spans: Uint32Array): number {
  let pairs = 0;
  for (let at = 0; at < spans.length; at += 2) pairs += spans[at + 1] - spans[at];
  return pairs;
}

async function compile(engine: Engine, kernels: Record<string, Kernel>): Promise<Record<string, Pipeline>> {
  const made = await Promise.all(
    Object.entries(kernels).map(async ([name, kernel]) => [name, await engine.pipelines.get(kernel)] as const),
  );
  return Object.fromEntries(made);
}

/**
 * Compiles the kernels and allocates the buffers.
 * @throws {StratumError} `memory/buffer-limit`, `kernel/compile`
 */
export async function createNetwork(engine: Engine, spec: ScorerSpec, options: NetworkOptions): Promise<Network> {
  const { device, target } = engine;
  const { rows, training } = options;
  const { head } = spec;
  const names = NAMES[head];
  const layout = parameterLayout(spec);
  const rate = training?.dropout ?? 0;
  const inputRate = training?.inputDropout ?? 0;
  const inputDropout =
    inputRate > 0
      ? await engine.pipelines.get(dropoutRows({ width: spec.dim, dropout: { rate: inputRate, site: SITES.input } }))
      : undefined;
  const inference = await compile(engine, forwardKernels(spec, target, 0));
  const kernels: Kernels = {
    forward: rate > 0 ? await compile(engine, forwardKernels(spec, target, rate)) : inference,
    backward: training ? await compile(engine, backwardKernels(spec, target, rate)) : {},
  };
  const { buffers, release } = allocate(engine.device, planNetwork(spec, rows, training !== undefined));
  const { weights, grads } = buffers;

  let current = 0;
  let extent: Extent = { outputs: 0, inputs: 0, pairs: 0 };
  const slots = new Map(layout.slots.map((slot) => [slot.name, slot]));
  const part = (buffer: DeviceBuffer, name: string): BoundBuffer => {
    const slot = slots.get(name);
    if (slot === undefined) throw new Error(`no parameter ${name}`);
    return { buffer, offset: 4 * slot.offset, size: 4 * slot.count };
  };
  const of = (buffer: DeviceBuffer, layer: Linear | Norm) => ({
    weight: part(buffer, `${names[layer]}weight`),
    bias: part(buffer, `${names[layer]}bias`),
  });

  function run(recorder: Recorder, role: string, pipeline: Pipeline, bound: Record<string, BoundBuffer>): void {
    recorder.dispatch(pipeline, { ...bound, params: buffers["params"] }, current, { role, extent });
  }

  return {
    spec,
    layout,
    rows,
    weights,
    grads,
    buffers,
    bytes: Object.values(buffers).reduce((sum, { size }) => sum + size, 0),
    begin(spans) {
      current = spans.length / 2;
      if (current > rows) throw new Error(`a batch of ${current} rows in a network for ${rows}`);
      extent = { outputs: current, inputs: current, pairs: pairsOf(spans) };
      device.write(buffers["spans"], spans);
      device.write(buffers["params"], Uint32Array.of(current, 0, 0, 0));
    },
    forward(recorder, counter) {
      const set = counter === undefined ? inference : kernels.forward;
      const { x, spans, h, qkv, attended, lse, projected, u, f, ffn, cosines } = buffers;
      const random: Record<string, BoundBuffer> = counter === undefined ? {} : { counter };
      const linear = (layer: Linear, input: DeviceBuffer, out: DeviceBuffer) =>
        run(recorder, layer, set[layer], { x: input, ...of(weights, layer), out });
      const norm = (layer: Norm, residual: DeviceBuffer, branch: DeviceBuffer, suffix: string) =>
        run(recorder, layer, set[layer], {
          ...{ residual, branch, ...of(weights, layer), ...random },
          ...{ out: buffers[`y${suffix}`], xhat: buffers[`xhat${suffix}`], rstd: buffers[`rstd${suffix}`] },
        });
      if (counter !== undefined && inputDropout !== undefined)
        run(recorder, "inputDropout", inputDropout, { counter, x });
      linear("proj", x, h);
      let stream = h;
      if (head === "listwise") {
        linear("inProj", h, qkv);
        run(recorder, "attention", set["attention"], { qkv, spans, ...random, out: attended, lse });
        linear("outProj", attended, projected);
        norm("norm1", h, projected, "1");
        stream = buffers["y1"];
      }
      linear("linear1", stream, u);
      run(recorder, "gelu", set["gelu"], { x: u, ...random, out: f });
      linear("linear2", f, ffn);
      norm("norm2", stream, ffn, "2");
      run(recorder, "cosine", set["cosine"], { y: buffers["y2"], spans, cosines });
    },
    backward(recorder, counter) {
      if (grads === undefined) throw new Error("a network without training has no backward pass");
      const into = grads;
      const back = kernels.backward;
      const { x, spans, h, qkv, attended, lse, u, f, y2, cosines, scoreGrads, dy2, dy1, dffn, df } = buffers;
      const random: Record<string, BoundBuffer> = rate > 0 ? { counter } : {};
      /** Gradients of a layer's weight and bias from those of its output. */
      const linear = (layer: Linear, dy: DeviceBuffer, input: DeviceBuffer) => {
        run(recorder, `${layer} weight gradient`, back[`${layer}.weight`], {
          dy,
          x: input,
          grad: of(into, layer).weight,
        });
        run(recorder, `${layer} bias gradient`, back[`${layer}.bias`], { x: dy, grad: of(into, layer).bias });
      };
      const inputOf = (layer: Linear, dy: DeviceBuffer, out: DeviceBuffer) =>
        run(recorder, `${layer} input gradient`, back[`${layer}.input`], {
          x: dy,
          weight: of(weights, layer).weight,
          out,
        });
      /** @returns the gradient of the branch */
      const norm = (layer: Norm, dout: DeviceBuffer, suffix: string, residual: DeviceBuffer, branch: DeviceBuffer) => {
        const xhat = buffers[`xhat${suffix}`];
        const { weight, bias } = of(into, layer);
        run(recorder, `${layer} gradient`, back[layer], {
          ...{ dout, xhat, rstd: buffers[`rstd${suffix}`], weight: of(weights, layer).weight, ...random },
          ...{ dresidual: residual, dbranch: branch },
        });
        run(recorder, "normWeight gradient", back["normWeight"], { x: dout, y: xhat, grad: weight });
        run(recorder, "normBias gradient", back["normBias"], { x: dout, grad: bias });
        return rate > 0 ? branch : residual;
      };
      run(recorder, "cosine gradient", back["cosine"], { y: y2, spans, cosines, grads: scoreGrads, dy: dy2 });
      const dbranch = norm("norm2", dy2, "2", dy1, dffn);
      linear("linear2", dbranch, f);
      inputOf("linear2", dbranch, df);
      run(recorder, "gelu gradient", back["gelu"], { x: u, ...random, dout: df });
      linear("linear1", df, head === "listwise" ? buffers["y1"] : h);
      inputOf("linear1", df, dy1);
      let stream = dy1;
      if (head === "listwise") {
        const { dh, dprojected, dattended, delta, dqkv } = buffers;
        const dout = norm("norm1", dy1, "1", dh, dprojected);
        linear("outProj", dout, attended);
        inputOf("outProj", dout, dattended);
        run(recorder, "query gradient", back["query"], {
          qkv,
          spans,
          out: attended,
          dout: dattended,
          lse,
          ...random,
          delta,
          dqkv,
        });
        run(recorder, "keyValue gradient", back["keyValue"], {
          qkv,
          spans,
          dout: dattended,
          lse,
          ...random,
          delta,
          dqkv,
        });
        linear("inProj", dqkv, h);
        inputOf("inProj", dqkv, dh);
        stream = dh;
      }
      linear("proj", stream, x);
    },
    [Symbol.dispose]: release,
  };
}
