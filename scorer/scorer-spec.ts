/**
 * A scorer's sizes, its parameters under PyTorch's names, and their first values.
 *
 * listwise: `torch.nn.Linear(D, P)` as `proj`, one `nn.TransformerEncoderLayer(P, heads, F)` as `encoder.layers.0`.
 * pointwise: `proj`, then a residual MLP `linear1`, `linear2` and its LayerNorm `norm`; no attention.
 */
import { StratumError } from "../errors.ts";
import { streamRandom } from "./sampling.ts";

export const SCORER_HEADS = ["listwise", "pointwise"] as const;
export type ScorerHead = (typeof SCORER_HEADS)[number];

export interface ScorerSpec {
  readonly head: ScorerHead;
  /** D, the width of a state. */
  readonly dim: number;
  /** P, the scorer's own width. */
  readonly width: number;
  /** Attention heads; without meaning for a pointwise head. */
  readonly heads: number;
  /** F, the width between the two layers of the MLP. */
  readonly ffn: number;
  /** The temperature that scores are divided by in the softmax of the loss. */
  readonly tau: number;
}

export interface ParameterShape {
  readonly name: string;
  /** Row-major; (out, in) for matrices, as in PyTorch. */
  readonly shape: readonly number[];
}

/**
 * Parameters of a scorer, at most: 2^26, 256 MiB in f32. The method's own scorers stay below 5M; with the moments of the
 * optimizer and the gradients this is 1 GiB on the GPU.
 */
export const MAX_SCORER_PARAMETERS = 2 ** 26;
/** P / heads, at most: the attention kernel keeps a head in registers, and its compilation grows with it. */
export const MAX_HEAD_WIDTH = 64;

/** Candidates of a list, at most: attention and the losses of pairs grow with their square, in one dispatch. */
export const MAX_CANDIDATES = 8192;

/** @throws {StratumError} `list/too-many-candidates` */
export function checkListLength(candidates: number): void {
  if (candidates <= MAX_CANDIDATES) return;
  throw new StratumError(
    "list/too-many-candidates",
    `a list has ${candidates} candidates; a scorer takes at most ${MAX_CANDIDATES}`,
    "split the list",
  );
}

/** Where the encoder block's parameters stand in the module. */
const BLOCK = "encoder.layers.0.";

/** Every parameter, in the fixed order of files, optimizer states and gradients. */
export function parameterShapes({ head, dim, width, ffn }: ScorerSpec): readonly ParameterShape[] {
  const shapes: ParameterShape[] = [];
  const linear = (name: string, out: number, input: number) => {
    shapes.push({ name: `${name}.weight`, shape: [out, input] }, { name: `${name}.bias`, shape: [out] });
  };
  const norm = (name: string) => {
    shapes.push({ name: `${name}.weight`, shape: [width] }, { name: `${name}.bias`, shape: [width] });
  };
  linear("proj", width, dim);
  if (head === "pointwise") {
    linear("linear1", ffn, width);
    linear("linear2", width, ffn);
    norm("norm");
    return shapes;
  }
  shapes.push(
    { name: `${BLOCK}self_attn.in_proj_weight`, shape: [3 * width, width] },
    { name: `${BLOCK}self_attn.in_proj_bias`, shape: [3 * width] },
  );
  linear(`${BLOCK}self_attn.out_proj`, width, width);
  linear(`${BLOCK}linear1`, ffn, width);
  linear(`${BLOCK}linear2`, width, ffn);
  norm(`${BLOCK}norm1`);
  norm(`${BLOCK}norm2`);
  return shapes;
}

/** Elements of a shape. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Parameters of a scorer. */
export function parameterCount(spec: ScorerSpec): number {
  return parameterShapes(spec).reduce((sum, { shape }) => sum + elementCount(shape), 0);
}

/**
 * Checks a scorer's sizes.
 * @throws {StratumError} `scorer/bad-size` unless sizes are positive integers, tau is above 0, heads divide the width into
 *   at most {@link MAX_HEAD_WIDTH} each (listwise), and there are at most {@link MAX_SCORER_PARAMETERS} parameters
 */
export function checkScorerSpec(spec: ScorerSpec): void {
  const { head, width, heads, tau } = spec;
  if (!SCORER_HEADS.includes(head)) throw badSize(`there is no head '${head}'`, `use ${SCORER_HEADS.join(" or ")}`);
  for (const name of ["dim", "width", "heads", "ffn"] as const) {
    if (!Number.isSafeInteger(spec[name]) || spec[name] < 1) {
      throw badSize(`the scorer's ${name} is ${spec[name]}`, "give a whole number from 1");
    }
  }
  if (!(tau > 0 && tau < Number.POSITIVE_INFINITY)) {
    throw badSize(`the scorer's tau is ${tau}`, "give a number above 0, such as 0.2");
  }
  if (head === "listwise" && width % heads !== 0) {
    throw badSize(`${heads} heads do not divide a width of ${width}`, "make the width a multiple of the heads");
  }
  if (head === "listwise" && width / heads > MAX_HEAD_WIDTH) {
    throw badSize(
      `${heads} heads of a width of ${width} are ${width / heads} wide each; at most ${MAX_HEAD_WIDTH} are supported`,
      `use at least ${Math.ceil(width / MAX_HEAD_WIDTH)} heads`,
    );
  }
  const count = parameterCount(spec);
  if (!(count <= MAX_SCORER_PARAMETERS)) {
    throw badSize(
      `a scorer of these sizes (dim ${spec.dim}, width ${width}, ffn ${spec.ffn}) has ${count} parameters; at most ${MAX_SCORER_PARAMETERS} are allowed`,
      "make it narrower",
    );
  }
}

function badSize(what: string, fix: string): StratumError {
  return new StratumError("scorer/bad-size", what, fix);
}

/**
 * First weights by PyTorch's default distributions. Each tensor is drawn from a stream of (seed, name): no other tensor,
 * and no order, changes it.
 *
 * Linear: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)) for weight and bias
 * (https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html); MultiheadAttention: `in_proj_weight` Xavier
 * uniform as one (3P, P) matrix, its biases 0; LayerNorm: 1 and 0.
 * @returns by name, in the order of {@link parameterShapes}
 */
export function initialWeights(spec: ScorerSpec, seed: number): Map<string, Float32Array<ArrayBuffer>> {
  const shapes = new Map(parameterShapes(spec).map(({ name, shape }) => [name, shape]));
  const weights = new Map<string, Float32Array<ArrayBuffer>>();
  for (const [name, shape] of shapes) {
    const values = new Float32Array(elementCount(shape));
    weights.set(name, values);
    const module = name.slice(0, name.lastIndexOf("."));
    if (/(^|\.)norm\d?$/.test(module)) {
      if (name.endsWith(".weight")) values.fill(1);
      continue;
    }
    if (name.endsWith(".in_proj_bias") || name.endsWith(".out_proj.bias")) continue;
    const [out, input] = name.endsWith(".bias") ? (shapes.get(`${module}.weight`) ?? shape) : shape;
    const bound = name.endsWith(".in_proj_weight") ? Math.sqrt(6 / (out + input)) : 1 / Math.sqrt(input);
    const random = streamRandom("weights", seed, name);
    for (let i = 0; i < values.length; i++) values[i] = (2 * random() - 1) * bound;
  }
  return weights;
}
