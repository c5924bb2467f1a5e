/** `stratum inspect`: its numbers are sums over the checkpoint's own header. */
import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openSafetensors, type TensorInfo } from "../../weights/safetensors.ts";
import { DEMO_MODEL, stratum } from "../support/cli.ts";
import { writeTinyModel } from "../support/tiny-model.ts";

interface Inspection {
  readonly parameters: number;
  readonly types: Readonly<Record<string, { tensors: number; parameters: number; bytes: number }>>;
  readonly config: Readonly<Record<string, unknown>>;
  readonly tokenizer: Readonly<Record<string, unknown>> | null;
  readonly chat_template: boolean;
  readonly runs: readonly {
    layer: number;
    depth: number;
    read_bytes: number;
    weights_bytes: number;
    batch_bytes: number;
    gpu_bytes: number;
    batch_tokens: number;
  }[];
}

async function inspect(...args: string[]): Promise<Inspection> {
  const run = await stratum(["inspect", ...args, "--json"]);
  expect(run.code, run.stderr).toBe(0);
  return JSON.parse(run.stdout) as Inspection;
}

const elements = ({ shape }: TensorInfo) => shape.reduce((product, size) => product * size, 1);
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

describe("inspect --json", () => {
  it("adds up the demo model, and what every layer reads and holds", async () => {
    await using file = await openSafetensors(join(DEMO_MODEL, "model.safetensors"));
    const blocks = (below: number) =>
      [...file.tensors.values()].filter(({ name }) => Number(/^model\.layers\.(\d+)\./.exec(name)?.[1] ?? 99) < below);
    const used = [file.info("model.embed_tokens.weight"), ...blocks(6)];
    const found = await inspect();
    expect(found.parameters).toBe(sum(used.map(elements)));
    expect(found.types).toEqual({
      BF16: {
        tensors: used.length,
        parameters: found.parameters,
        bytes: sum(used.map(({ byteLength }) => byteLength)),
      },
    });
    expect(found.config).toMatchObject({
      modelType: "llama",
      hiddenSize: 192,
      layers: 6,
      vocab: 4096,
      maxPositions: 512,
      norm: { kind: "rms", eps: 1e-5, weightOffset: 0 },
      activation: "silu",
      softcap: null,
      ropes: [{ type: "default", theta: 10000, dims: 32 }],
    });
    expect(found.tokenizer).toEqual({ vocabulary: 4096, bos: "<|bos|>", eos: "<|eos|>", adds_bos: true });
    expect(found.chat_template).toBe(true);
    expect(found.runs.map(({ layer }) => layer)).toEqual([0, 1, 2, 3, 4, 5, 6]);
    for (const run of found.runs) {
      const read = blocks(run.layer);
      expect(run.read_bytes).toBe(sum(read.map(({ byteLength }) => byteLength)));
      // Matrices are held as they are stored, norms as f32.
      expect(run.weights_bytes).toBe(
        sum(read.map((tensor) => (tensor.shape.length === 1 ? 4 * elements(tensor) : tensor.byteLength))),
      );
      expect(run.gpu_bytes).toBe(run.weights_bytes + run.batch_bytes);
      expect(run.depth).toBeCloseTo(run.layer / 6, 4);
    }
  });

  it("knows a model without tokenizer and template, mixed types, and the asked-for layers in their order", async () => {
    await using model = await writeTinyModel({ dtypeOf: { "up_proj.weight": "F16", "q_proj.weight": "BF16" } });
    const found = await inspect(model.directory, "--layers", "100%,1", "--batch-tokens", "64");
    expect([found.tokenizer, found.chat_template]).toEqual([null, false]);
    expect(found.runs.map(({ layer, batch_tokens }) => [layer, batch_tokens])).toEqual([
      [3, 64],
      [1, 64],
    ]);
    const counted = [...model.tensors].filter(([name]) => !/^(model\.norm|lm_head)/.test(name));
    const of = (end: string) => counted.filter(([name]) => name.endsWith(end));
    const total = (tensors: typeof counted) => sum(tensors.map(([, values]) => values.length));
    expect(found.parameters).toBe(total(counted));
    expect(found.types).toEqual({
      F32: expect.objectContaining({ tensors: counted.length - 6 }),
      F16: { tensors: 3, parameters: total(of("up_proj.weight")), bytes: 2 * total(of("up_proj.weight")) },
      BF16: { tensors: 3, parameters: total(of("q_proj.weight")), bytes: 2 * total(of("q_proj.weight")) },
    });
  });

  it("says how positions come in, and where attention has a window", async () => {
    const entries = { model_type: "qwen2", use_sliding_window: true, max_window_layers: 2, sliding_window: 7 };
    const rope_scaling = { rope_type: "linear", factor: 4 };
    await using model = await writeTinyModel({ biases: true, config: { ...entries, rope_scaling } });
    const found = await inspect(model.directory);
    expect(found.config).toMatchObject({
      modelType: "qwen2",
      ropes: [{ type: "linear", theta: 10000, dims: 16, factor: 4 }],
    });
    const run = await stratum(["inspect", model.directory]);
    expect([run.code, run.stderr]).toEqual([0, ""]);
    expect(run.stdout).toMatch(/^family +qwen2$/m);
    expect(run.stdout).toMatch(/^attention +4 heads of 16, 2 for keys and values, window 7 in 1 of 3 blocks$/m);
    expect(run.stdout).toMatch(/^positions +256, rope theta 10000, linear scaling by 4$/m);
  });

  it("tells a model without tokenizer from one whose tokenizer does not fit", async () => {
    await using model = await writeTinyModel({});
    const lineOf = async () => (await stratum(["inspect", model.directory])).stdout.match(/^tokenizer .*$/m)?.[0];
    expect(await lineOf()).toMatch(/^tokenizer +none: extract works/);
    await copyFile(join(DEMO_MODEL, "tokenizer.json"), join(model.directory, "tokenizer.json"));
    expect(await lineOf()).toMatch(/^tokenizer +cannot be used, .* ids up to 4095, .*: extract works/);
  });

  it("is a table without --json, and opens no adapter", async () => {
    const run = await stratum(["inspect", DEMO_MODEL, "--adapter", "nonsense", "--layers", "25%"]);
    expect([run.code, run.stderr]).toEqual([0, ""]);
    expect(run.stdout).toMatch(/^ +2 +33% +1\.50 MiB/m);
  });
});
