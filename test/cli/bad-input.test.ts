/** Bad models and bad flags: a code, an exit code, no stack trace, nothing on stdout. */
import { existsSync } from "node:fs";
import { cp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type CliRun,
  EXAMPLES,
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  REPOSITORY,
  stratum,
  temporaryFolder,
  writeTinyTextModel,
} from "../support/cli.ts";
import type { TinyModel } from "../support/tiny-model.ts";

/** A stack frame as V8 writes it. */
const STACK_FRAME = /^\s+at .+[:(]/m;

/** What every failure of a whole command must look like. */
function expectFailure(run: CliRun, code: string, exit: number): void {
  expect({ codes: errorCodes(run.stderr), exit: run.code, stdout: run.stdout }, run.stderr).toEqual({
    codes: [code],
    exit,
    stdout: "",
  });
  expect(run.stderr).toMatch(/^ {2}fix: .+/m);
  expect(run.stderr).not.toMatch(STACK_FRAME);
}

type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;

/** Rewrites a safetensors file. */
async function rewrite(path: string, change: (header: Header, body: Buffer) => Buffer | undefined): Promise<void> {
  const file = await readFile(path);
  const end = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, end)) as Header;
  const body = change(header, file.subarray(end)) ?? file.subarray(end);
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  await writeFile(path, Buffer.concat([length, text, body]));
}

const QUERY = "model.layers.0.self_attn.q_proj.weight";
const DEEP = "model.layers.2.mlp.down_proj.weight";
const weights = (directory: string) => join(directory, "model.safetensors");
const config = (changes: object) => async (directory: string) => {
  const path = join(directory, "config.json");
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, "utf8")), ...changes }));
};

/** A fault of a model folder, done to a copy of a sound one. */
interface ModelFault {
  readonly name: string;
  readonly code: string;
  readonly harm: (directory: string) => Promise<void>;
  /** What stderr must name. */
  readonly says?: RegExp;
  /** `rank` fails before it opens an adapter in all but these, for which `inspect`, which opens none, is as good. */
  readonly command?: "inspect";
}

const MODEL_FAULTS: readonly ModelFault[] = [
  {
    name: "no config.json",
    code: "config/missing",
    harm: (directory) => rm(join(directory, "config.json")),
  },
  {
    name: "a config.json that is cut",
    code: "config/bad-json",
    harm: (directory) => truncate(join(directory, "config.json"), 40),
  },
  {
    name: "another family",
    code: "config/unsupported-model",
    harm: config({ model_type: "mamba" }),
    says: /"mamba".*llama/,
  },
  {
    name: "another kind of rotary embedding",
    code: "config/unsupported-rope",
    harm: config({ rope_scaling: { rope_type: "ntk", factor: 4 } }),
    says: /"ntk".*llama3/,
  },
  {
    name: "weights of another size than config.json says",
    code: "model/shape",
    harm: config({ intermediate_size: 99 }),
    says: /gate_proj.*\[\d+, \d+\].*\[99, \d+\]/,
    command: "inspect",
  },
  {
    name: "no weights",
    code: "model/no-weights",
    harm: (directory) => rm(weights(directory)),
  },
  {
    name: "a download that stopped early",
    code: "safetensors/truncated",
    harm: (directory) => truncate(weights(directory), 200_000),
  },
  {
    name: "tensors that overlap",
    code: "safetensors/overlap",
    harm: (directory) =>
      rewrite(weights(directory), (header) => {
        const { data_offsets } = header[QUERY]!;
        header[QUERY]!.data_offsets = [data_offsets[0] - 4, data_offsets[1] - 4];
        return undefined;
      }),
    says: /q_proj/,
  },
  {
    name: "a hole between tensors",
    code: "safetensors/hole",
    harm: (directory) =>
      rewrite(weights(directory), (header) => {
        delete header[QUERY];
        return undefined;
      }),
  },
  {
    name: "a header of 2^60 bytes",
    code: "safetensors/header-too-large",
    harm: async (directory) => {
      const file = await readFile(weights(directory));
      file.writeBigUInt64LE(2n ** 60n);
      await writeFile(weights(directory), file);
    },
  },
  {
    name: "integer weights",
    code: "model/unsupported-dtype",
    harm: (directory) =>
      rewrite(weights(directory), (header) => {
        const { shape } = header[QUERY]!;
        header[QUERY]!.dtype = "I8";
        // Four times as many columns, so that the bytes still fit: the type is judged before the shape.
        header[QUERY]!.shape = [shape[0]!, shape[1]! * 4];
        return undefined;
      }),
    says: /q_proj.*I8/,
    command: "inspect",
  },
  {
    name: "a tensor that is missing",
    code: "model/missing-tensor",
    harm: (directory) =>
      rewrite(weights(directory), (header) => {
        header["something.else"] = header[DEEP]!;
        delete header[DEEP];
        return undefined;
      }),
    says: /layers\.2\.mlp\.down_proj/,
    command: "inspect",
  },
  {
    name: "a shard that is missing",
    code: "model/missing-shard",
    harm: async (directory) => {
      const header: string[] = [];
      await rewrite(weights(directory), (entries) => {
        header.push(...Object.keys(entries));
        return undefined;
      });
      const shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] as const;
      await cp(weights(directory), join(directory, shards[0]));
      await rm(weights(directory));
      const map = Object.fromEntries(header.map((name) => [name, shards[name === DEEP ? 1 : 0]]));
      await writeFile(join(directory, "model.safetensors.index.json"), JSON.stringify({ weight_map: map }));
    },
    says: /model-00002-of-00002\.safetensors is missing.*down_proj/,
    command: "inspect",
  },
  {
    name: "a tokenizer of another model",
    code: "tokenizer/mismatch",
    // The demo model's tokenizer has 4096 entries.
    harm: async (directory) => {
      await config({ vocab_size: 4000 })(directory);
      await rewrite(weights(directory), (header, body) => {
        const { shape, data_offsets } = header["model.embed_tokens.weight"]!;
        const cut = 96 * shape[1]! * 4;
        for (const entry of Object.values(header))
          if (entry.data_offsets[0] >= data_offsets[1])
            entry.data_offsets = [entry.data_offsets[0] - cut, entry.data_offsets[1] - cut];
        const rest = body.subarray(data_offsets[1]);
        data_offsets[1] -= cut;
        shape[0] = 4000;
        return Buffer.concat([body.subarray(0, data_offsets[1]), rest]);
      });
    },
    says: /4095.*4000/,
  },
];

let folder: Folder;
let model: TinyModel;
beforeAll(async () => {
  folder = await temporaryFolder();
  model = await writeTinyTextModel();
});
afterAll(async () => {
  await folder[Symbol.asyncDispose]();
  await model[Symbol.asyncDispose]();
});

describe("a model with", () => {
  it("nothing wrong is ranked with: the faults below are the faults", async () => {
    const run = await stratum(["rank", "--model", model.directory], { stdin: exampleLines[0]! });
    expect([run.code, jsonLines(run.stdout).length]).toEqual([0, 1]);
  });

  it.each(MODEL_FAULTS)("$name: $code", async ({ name, code, harm, says, command }) => {
    const directory = join(folder.path, name.replaceAll(/\W/g, "-"));
    await cp(model.directory, directory, { recursive: true });
    await harm(directory);
    const args = command === "inspect" ? ["inspect", directory] : ["rank", EXAMPLES, "--model", directory];
    const run = await stratum(args);
    expectFailure(run, code, 2);
    if (says) expect(run.stderr).toMatch(says);
  });

  it("no folder: model/missing, which names the path", async () => {
    const run = await stratum(["rank", EXAMPLES, "--model", join(folder.path, "nowhere")]);
    expectFailure(run, "model/missing", 2);
    expect(run.stderr).toContain(join(folder.path, "nowhere"));
  });

  it("a tensor missing that only deeper layers need: those above are ranked with", async () => {
    const directory = join(folder.path, "shallow");
    await cp(model.directory, directory, { recursive: true });
    await MODEL_FAULTS.find(({ code }) => code === "model/missing-shard")!.harm(directory);
    const run = await stratum(["rank", "--model", directory, "--layer", "2"], { stdin: exampleLines[0]! });
    expect([run.code, jsonLines(run.stdout).length]).toEqual([0, 1]);
  });
});

describe("flags", () => {
  it.each([
    ["a layer beyond the model", "usage/layer", 2, ["rank", EXAMPLES, "--layer", "7"]],
    ["a layer that is none", "usage/layer", 2, ["rank", EXAMPLES, "--layer", "deep"]],
    ["a scorer that is none", "scorer/missing", 2, ["rank", EXAMPLES, "--scorer", "magic"]],
    ["a candidate without an instruction", "usage/list", 2, ["rank", "--candidate", "a"]],
    ["an input that is not there", "usage/no-input", 2, ["rank", "/nowhere/lists.jsonl"]],
    ["a batch that holds nothing", "usage/batch-tokens", 2, ["inspect", "--batch-tokens", "1"]],
    ["a folder as the output", "usage/output", 2, ["rank", EXAMPLES, "-o", REPOSITORY]],
    ["an output without a name", "usage/output", 2, ["rank", EXAMPLES, "-o", ""]],
    ["states to stdout", "usage/output", 2, ["extract", EXAMPLES, "-o", "-"]],
    ["a benchmark of nothing", "usage/bench", 2, ["bench", "depth", "--layer", "0"]],
    ["an output in a folder that is not there", "usage/output", 2, ["rank", EXAMPLES, "-o", "/nowhere/x.jsonl"]],
  ] as const)("%s: %s", async (_, code, exit, args) => {
    expectFailure(await stratum(args), code, exit);
  });

  // These are the command line library's own messages: they name the flag, and have no code.
  it.each([
    ["an unknown option", ["rank", "--bogus"], /unknown option '--bogus'/],
    ["an unknown command", ["rnak"], /unknown command 'rnak'.*rank/s],
    ["a date that is none", ["rank", "--date", "2026-02-30"], /--date.*2026-02-30/],
    ["a number that is none", ["rank", "--top-n", "-1"], /--top-n.*-1/],
    ["extract without -o", ["extract"], /--output/],
  ] as const)("%s is named, with the help that fits", async (_, args, says) => {
    const run = await stratum(args);
    expect([run.code, run.stdout]).toEqual([2, ""]);
    expect(run.stderr).toMatch(says);
    expect(run.stderr).toMatch(/--help/);
    expect(run.stderr).not.toMatch(STACK_FRAME);
  });

  it("an adapter that is none leaves no output behind", async () => {
    const out = join(folder.path, "never.jsonl");
    expectFailure(await stratum(["rank", EXAMPLES, "--adapter", "nonsense", "-o", out]), "adapter/none", 3);
    expect(existsSync(out)).toBe(false);
  });
});
