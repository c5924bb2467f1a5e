/** The library's door to hidden states: a model loaded to a layer, and the states of token sequences. */
import { StratumError } from "../errors.ts";
import { checkIds } from "../weights/tokenizer.ts";
import { type Batch, rowOf } from "./batch.ts";
import { type DecoderConfig, lengthLimit } from "./decoder.ts";
import { resolveLayer } from "./layers.ts";
import { type Engine, type LoadedModel, loadBlocks } from "./model.ts";
import { type ModelFiles, openModelFiles } from "./model-files.ts";
import { DEFAULT_BATCH_TOKENS, type RunRequest } from "./plan.ts";
import { type Furniture, openRoom, overLosses, type Room } from "./room.ts";
import { createRunner, type Runner } from "./runner.ts";
import { checkFits, type Job, streamJobs } from "./stream.ts";

/** A model that is ready to run down to a layer. Disposing it frees its GPU memory and closes its files. */
export interface Model extends AsyncDisposable {
  readonly engine: Engine;
  readonly files: ModelFiles;
  /** The weights as they were loaded last. */
  readonly loaded: LoadedModel;
  /** The deepest layer that can be asked for. */
  readonly depth: number;
  /**
   * The weights on the device as it is now: read and uploaded again where it was renewed since.
   * @throws {StratumError} as {@link loadModel}
   */
  onDevice(): Promise<LoadedModel>;
}

export interface LoadModelOptions {
  /** How deep to load: `"25%"`, `"8"`, 8; default all blocks. Only tensors of blocks below it are read. */
  readonly layer?: string | number;
  /** Called after each block. */
  readonly onBlock?: (done: number, depth: number) => void;
  /** Ends the loading between blocks, with its reason; later it plays no part. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Loads a Hugging Face model directory down to a layer.
 * @param model a directory, or what `openModelFiles` gave (then the model owns it)
 * @throws {StratumError} `model/...`, `config/...`, `safetensors/...`, `memory/buffer-limit`, `usage/layer`
 */
export async function loadModel(
  engine: Engine,
  model: string | ModelFiles,
  options: LoadModelOptions = {},
): Promise<Model> {
  const files = typeof model === "string" ? await openModelFiles(model) : model;
  try {
    const layers = files.spec.config.layers;
    const depth = resolveLayer(String(options.layer ?? layers), layers);
    const more = options.onBlock === undefined ? {} : { onBlock: options.onBlock };
    const { device } = engine;
    const load = async (signal?: AbortSignal) => {
      const { generation } = device;
      const made = await device.span("load weights", () =>
        loadBlocks(engine, files.checkpoint, files.spec, { depth, signal, ...more }),
      );
      return { generation, made };
    };
    let current = await overLosses(device, () => load(options.signal));
    let loading: Promise<void> | undefined;
    return {
      engine,
      files,
      get loaded() {
        return current.made;
      },
      depth,
      async onDevice() {
        if (current.generation === device.generation) return current.made;
        loading ??= load()
          .then((loaded) => {
            current = loaded;
          })
          .finally(() => {
            loading = undefined;
          });
        await loading;
        return current.made;
      },
      async [Symbol.asyncDispose]() {
        current.made[Symbol.dispose]();
        await files[Symbol.asyncDispose]();
      },
    };
  } catch (cause) {
    await files[Symbol.asyncDispose]();
    throw cause;
  }
}

export interface HiddenStatesOptions {
  /** Layers to read out; default the model's depth. */
  readonly layers?: readonly number[];
  /** States of every token (K, T, D), or of the last alone (K, D); default `last`. */
  readonly tokens?: "last" | "all";
  /** Rows of a batch; see `createRunner`. */
  readonly batchTokens?: number;
}

/**
 * Hidden states of token sequences: state k is the residual stream after k blocks, before the final norm.
 * @param sequences (T) token ids each, at least one
 * @returns a sequence's states in the order of `layers`: (K, D) with `last`, (K, T, D) with `all`
 * @throws {StratumError} `list/too-long`, `list/over-budget`, `tokenizer/mismatch`, `state/not-finite`, `usage/layer`
 */
export async function hiddenStates(
  model: Model,
  sequences: readonly Int32Array[],
  options: HiddenStatesOptions = {},
): Promise<Float32Array[]> {
  const { layers = [model.depth], tokens = "last", batchTokens } = options;
  const { config } = model.files.spec;
  const jobs = sequences.map((ids, item) => ({ item, group: { sequences: [ids] } }));
  const output = tokens === "last" ? "pooled" : "all";
  using room = await openRunnerRoom(model, { layers, output, batchTokens });
  for (const { group } of jobs) {
    checkLength(group.sequences[0].length, config, "a sequence", "shorten it");
    checkIds(group.sequences[0], config.vocab);
    checkFits(group, room.current.runner);
  }
  const states: Float32Array[] = new Array(sequences.length);
  async function* source() {
    yield* jobs;
  }
  const run = async (batch: Batch, members: readonly Job<number>[], { runner }: RunnerRoom["current"]) => {
    for (const result of await batchStates(model, runner, batch, tokens)) {
      const fault = finiteFault(result.states, layers, config.hiddenSize);
      if (fault) throw fault;
      states[members[result.group].item] = result.states;
    }
  };
  for await (const _ of streamJobs(source(), room, run));
  return states;
}

/** A room with a runner of the model, and nothing else. */
export type RunnerRoom = Room<Furniture & { readonly runner: Runner }>;

/** Opens a room for a model's batches. @throws {StratumError} as `createRunner` */
export function openRunnerRoom(model: Model, request: RunRequest): Promise<RunnerRoom> {
  return openRoom(
    model.engine.device,
    async (mostRows) => {
      const runner = await createRunner(await model.onDevice(), request, mostRows);
      return { runner, [Symbol.dispose]: () => runner[Symbol.dispose]() };
    },
    request.batchTokens ?? DEFAULT_BATCH_TOKENS,
  );
}

/** The states of one sequence of a batch. */
export interface SequenceStates {
  readonly group: number;
  readonly index: number;
  readonly states: Float32Array<ArrayBuffer>;
}

/**
 * Runs one batch and gives every sequence its states, (K, D) with `last` (as the runner, of output `pooled`, pools them),
 * (K, T, D) with `all`. They are not checked.
 */
export async function batchStates(
  model: Model,
  runner: Runner,
  batch: Batch,
  tokens: "last" | "all",
): Promise<SequenceStates[]> {
  const d = model.files.spec.config.hiddenSize;
  const taps = runner.layers.length;
  if (tokens === "last") {
    const flat = await runner.pooledStates(batch);
    return batch.sequences.map(({ group, index }, i) => ({
      group,
      index,
      states: flat.slice(i * taps * d, (i + 1) * taps * d),
    }));
  }
  const results = batch.sequences.map(({ group, index, length }) => ({
    group,
    index,
    states: hostFloats(taps * length * d),
  }));
  await runner.allStates(batch, (layer, rows) => {
    const tap = runner.layers.indexOf(layer);
    for (const [i, sequence] of batch.sequences.entries()) {
      for (let t = 0; t < sequence.length; t++) {
        const row = rowOf(sequence, t) * d;
        results[i].states.set(rows.subarray(row, row + d), (tap * sequence.length + t) * d);
      }
    }
  });
  return results;
}

/** @throws {StratumError} `memory/host` where the process cannot hold so many */
function hostFloats(count: number): Float32Array<ArrayBuffer> {
  try {
    return new Float32Array(count);
  } catch (cause) {
    throw new StratumError(
      "memory/host",
      `the states of one sequence need ${4 * count} bytes of host memory`,
      "ask for fewer layers at a time, or for --tokens last",
      cause,
    );
  }
}

/**
 * Looks for NaN and infinity in states.
 * @param states (K, T, D), T = 1 for pooled states
 * @returns the error `state/not-finite` with the first layer that holds one, or null
 */
export function finiteFault(states: Float32Array, layers: readonly number[], d: number): StratumError | null {
  const at = states.findIndex((value) => !Number.isFinite(value));
  if (at < 0) return null;
  const tokens = states.length / (layers.length * d);
  return new StratumError(
    "state/not-finite",
    `a state of layer ${layers[Math.floor(at / (tokens * d))]} holds ${states[at]}`,
    "the checkpoint's weights overflow or are damaged: try a shallower --layer, and check the download",
  );
}

/**
 * @param what names the sequence in the message
 * @throws {StratumError} `list/too-long` beyond the model's positions, `list/empty-sequence` for no token
 */
export function checkLength(tokens: number, config: DecoderConfig, what: string, fix: string): void {
  if (tokens === 0) throw new StratumError("list/empty-sequence", `${what} has no token`, "give it a text or ids");
  if (tokens <= config.maxPositions) return;
  throw new StratumError("list/too-long", `${what} has ${tokens} tokens; ${lengthLimit(config)}`, fix);
}
