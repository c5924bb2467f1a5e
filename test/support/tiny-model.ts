/** Tiny checkpoints with random weights, written by the test that needs them: odd sizes, any type, any fault. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { seededRandom } from "../../kernels/random.ts";
import { encodeFloats, type FloatDtype } from "../../weights/floats.ts";
import { type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";

export interface TinyModelOptions {
  readonly dtype?: FloatDtype;
  /** D */
  readonly hidden?: number;
  /** F */
  readonly ffn?: number;
  /** L */
  readonly layers?: number;
  /** H */
  readonly heads?: number;
  /** G */
  readonly kvHeads?: number;
  /** E */
  readonly headDim?: number;
  /** V */
  readonly vocab?: number;
  readonly biases?: boolean;
  /** Keys that a token sees; absent: all. */
  readonly window?: number;
  readonly seed?: number;
  /** Stored type of the tensors whose names end so. */
  readonly dtypeOf?: Readonly<Record<string, FloatDtype>>;
  /** The name under which a tensor is stored; null leaves it out. */
  readonly rename?: (name: string) => string | null;
  /** More entries of config.json. */
  readonly config?: Readonly<Record<string, unknown>>;
  /** Changes a tensor's values before they are stored. */
  readonly change?: (name: string, values: Float32Array) => void;
}

/** A folder with config.json and model.safetensors, removed on disposal. */
export interface TinyModel extends AsyncDisposable {
  readonly directory: string;
  readonly vocab: number;
  /** The values as they were before storing. */
  readonly tensors: ReadonlyMap<string, Float32Array>;
}

/** Writes a Llama (or, with a window, a Mistral) of these sizes into a temporary folder. */
export async function writeTinyModel(options: TinyModelOptions = {}): Promise<TinyModel> {
  // The sizes of the golden llama: whoever compiles slowly has those kernels already.
  const {
    dtype = "F32",
    hidden = 64,
    ffn = 172,
    layers = 3,
    heads = 4,
    kvHeads = 2,
    headDim = 16,
    vocab = 50,
  } = options;
  const { biases = false, window, seed = 1 } = options;
  const random = seededRandom(seed);
  const tensors = new Map<string, Float32Array>();
  const stored: TensorData[] = [];
  const add = (name: string, shape: readonly number[], scale: number, offset = 0) => {
    const count = shape.reduce((product, size) => product * size, 1);
    const values = Float32Array.from({ length: count }, () => offset + (random() * 2 - 1) * scale);
    options.change?.(name, values);
    const type = Object.entries(options.dtypeOf ?? {}).find(([end]) => name.endsWith(end))?.[1] ?? dtype;
    tensors.set(name, values);
    const storedName = options.rename ? options.rename(name) : name;
    if (storedName !== null) stored.push({ name: storedName, dtype: type, shape, bytes: encodeFloats(values, type) });
  };
  const matrix = (name: string, n: number, k: number) => {
    add(`${name}.weight`, [n, k], Math.sqrt(3 / k));
    if (biases) add(`${name}.bias`, [n], 0.5);
  };
  add("model.embed_tokens.weight", [vocab, hidden], 1);
  for (let layer = 0; layer < layers; layer++) {
    const at = `model.layers.${layer}.`;
    add(`${at}input_layernorm.weight`, [hidden], 0.3, 1);
    matrix(`${at}self_attn.q_proj`, heads * headDim, hidden);
    matrix(`${at}self_attn.k_proj`, kvHeads * headDim, hidden);
    matrix(`${at}self_attn.v_proj`, kvHeads * headDim, hidden);
    matrix(`${at}self_attn.o_proj`, hidden, heads * headDim);
    add(`${at}post_attention_layernorm.weight`, [hidden], 0.3, 1);
    matrix(`${at}mlp.gate_proj`, ffn, hidden);
    matrix(`${at}mlp.up_proj`, ffn, hidden);
    matrix(`${at}mlp.down_proj`, hidden, ffn);
  }
  add("model.norm.weight", [hidden], 0.3, 1);
  add("lm_head.weight", [vocab, hidden], 1);
  const directory = await mkdtemp(join(tmpdir(), "stratum-tiny-"));
  // A misaligned tensor cannot be viewed by some readers: wider types first.
  const wide = stored.filter((tensor) => tensor.dtype === "F32");
  const narrow = stored.filter((tensor) => tensor.dtype !== "F32");
  await writeSafetensors(join(directory, "model.safetensors"), [...wide, ...narrow]);
  const config = {
    model_type: window === undefined ? "llama" : "mistral",
    hidden_size: hidden,
    intermediate_size: ffn,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    vocab_size: vocab,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    max_position_embeddings: 256,
    ...(window === undefined ? { attention_bias: biases, mlp_bias: biases } : { sliding_window: window }),
    ...options.config,
  };
  await writeFile(join(directory, "config.json"), JSON.stringify(config));
  return {
    directory,
    vocab,
    tensors,
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
  };
}
