import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadChatTemplate } from "../../weights/chat-template.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import { readConfigFile } from "../../weights/config.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";
import { loadTokenizer } from "../../weights/tokenizer.ts";
import { failing } from "../support/failing.ts";

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "stratum-checkpoint-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

/** A (rows, columns) U8 tensor whose row r is filled with r. */
const matrix = (name: string, rows: number, columns: number): TensorData => ({
  name,
  dtype: "U8",
  shape: [rows, columns],
  bytes: Uint8Array.from({ length: rows * columns }, (_, i) => Math.floor(i / columns)),
});

const EMBED = matrix("model.embed_tokens.weight", 100, 8);
const Q0 = matrix("model.layers.0.self_attn.q_proj.weight", 3, 4);
const Q1 = matrix("model.layers.1.self_attn.q_proj.weight", 3, 4);
const NORM: TensorData = { name: "model.norm.weight", dtype: "F32", shape: [1], bytes: new Uint8Array(4) };

const SHARDS = { "model-00001-of-00002.safetensors": [EMBED, Q0], "model-00002-of-00002.safetensors": [Q1, NORM] };

async function writeIndex(weightMap: unknown): Promise<void> {
  await writeFile(
    join(folder, "model.safetensors.index.json"),
    JSON.stringify({ metadata: {}, weight_map: weightMap }),
  );
}

async function writeShards(): Promise<void> {
  const weightMap: Record<string, string> = {};
  for (const [shard, tensors] of Object.entries(SHARDS)) {
    await writeSafetensors(join(folder, shard), tensors, { metadata: { format: "pt" } });
    for (const { name } of tensors) weightMap[name] = shard;
  }
  await writeIndex(weightMap);
}

const [FIRST, SECOND] = Object.keys(SHARDS) as [string, string];

describe("a sharded model", () => {
  beforeEach(writeShards);

  it("names its tensors without opening a shard, and opens only the shards it needs", async () => {
    await rm(join(folder, SECOND));
    await using model = await openCheckpoint(folder);
    expect([...model.names()]).toEqual([EMBED, Q0, Q1, NORM].map((tensor) => tensor.name));
    expect([model.has(Q1.name), model.has("toString")]).toEqual([true, false]);
    expect(model.log).toEqual({ bytes: 0, headerBytes: 0, tensors: new Map() });

    expect(await model.read(Q0.name)).toEqual(Q0.bytes);
    expect(await model.info(EMBED.name)).toMatchObject({ dtype: "U8", shape: [100, 8], byteLength: 800 });
    expect(model.log.tensors).toEqual(new Map([[Q0.name, 12]]));
    expect(model.log.bytes).toBe(12);
  });

  it("says which shard a tensor misses, and finds it once it is there", async () => {
    await rename(join(folder, SECOND), join(folder, "elsewhere"));
    await using model = await openCheckpoint(folder);
    await expect(model.read(Q1.name)).rejects.toThrow(failing("model/missing-shard", SECOND, Q1.name));
    await rename(join(folder, "elsewhere"), join(folder, SECOND));
    expect(await model.read(Q1.name)).toEqual(Q1.bytes);
  });

  it("opens a shard once for many readers, and adds up one log", async () => {
    await using model = await openCheckpoint(folder);
    const all = await Promise.all([EMBED, Q0, Q1, NORM].map((tensor) => model.read(tensor.name)));
    expect(all).toEqual([EMBED, Q0, Q1, NORM].map((tensor) => tensor.bytes));
    expect(model.log.bytes).toBe(800 + 12 + 12 + 4);
    let headers = 0;
    for (const shard of [FIRST, SECOND]) {
      await using file = await openSafetensors(join(folder, shard));
      headers += file.log.headerBytes;
    }
    expect(model.log.headerBytes).toBe(headers);
  });

  it("names the nearest tensors when one is missing", async () => {
    await using model = await openCheckpoint(folder);
    const reading = model.read("layers.1.self_attn.q_proj.weight");
    await expect(reading).rejects.toThrow(
      failing(
        "model/missing-tensor",
        '"layers.1.self_attn.q_proj.weight"; the nearest are "model.layers.1.self_attn.q_proj',
      ),
    );
    await expect(model.info("toString")).rejects.toThrow(failing("model/missing-tensor"));
  });

  it("refuses a tensor that the index promises and the shard lacks", async () => {
    await writeIndex({ [Q0.name]: SECOND, [Q1.name]: SECOND });
    await using model = await openCheckpoint(folder);
    await expect(model.read(Q0.name)).rejects.toThrow(failing("model/bad-index", SECOND, Q0.name));
    expect(await model.read(Q1.name)).toEqual(Q1.bytes);
  });

  it("reads nothing after closing", async () => {
    const model = await openCheckpoint(folder);
    await model.read(Q0.name);
    await model.close();
    await model.close();
    await expect(model.read(Q0.name)).rejects.toThrow(failing("safetensors/closed"));
    await expect(model.read(Q1.name)).rejects.toThrow(failing("safetensors/closed"));
  });

  it("follows the links of the hub cache", async () => {
    const snapshot = join(folder, "snapshots", "1234");
    await mkdir(snapshot, { recursive: true });
    await mkdir(join(folder, "blobs"));
    for (const [i, file] of [FIRST, SECOND, "model.safetensors.index.json"].entries()) {
      await rename(join(folder, file), join(folder, "blobs", String(i)));
      await symlink(join("..", "..", "blobs", String(i)), join(snapshot, file));
    }
    await using model = await openCheckpoint(snapshot);
    expect(await model.read(Q1.name)).toEqual(Q1.bytes);
    await rm(join(folder, "blobs", "0"));
    await expect(model.read(Q0.name)).rejects.toThrow(failing("model/missing-shard", FIRST));
  });

  it("follows no other link that leads out of the folder", async () => {
    const model = join(folder, "model");
    const blobs = join(folder, "models--org--name", "blobs");
    await mkdir(model);
    await mkdir(blobs, { recursive: true });
    const open = async () => {
      await using opened = await openCheckpoint(model);
      return await opened.read(Q1.name);
    };
    await writeIndex({ [Q1.name]: SECOND });
    await rename(join(folder, "model.safetensors.index.json"), join(model, "model.safetensors.index.json"));
    for (const target of [join("..", SECOND), join(folder, SECOND)]) {
      await symlink(target, join(model, SECOND));
      await expect(open()).rejects.toThrow(failing("model/outside-link", SECOND));
      await rm(join(model, SECOND));
    }
    // Python's hub client links a folder of one's own to its cache.
    await rename(join(folder, SECOND), join(blobs, "0123"));
    await symlink(join(blobs, "0123"), join(model, SECOND));
    expect(await open()).toEqual(Q1.bytes);
    await rm(join(model, SECOND));
    await mkdir(join(model, "sub"));
    await rename(join(blobs, "0123"), join(model, "sub", "w"));
    await symlink(join("sub", "w"), join(model, SECOND));
    expect(await open()).toEqual(Q1.bytes);

    for (const [file, load] of [
      ["config.json", readConfigFile],
      ["tokenizer.json", loadTokenizer],
      ["tokenizer_config.json", loadChatTemplate],
      ["chat_template.jinja", loadChatTemplate],
    ] as const) {
      await writeFile(join(folder, "outside"), "{}");
      await symlink(join("..", "outside"), join(model, file));
      await expect(load(model), file).rejects.toThrow(failing("model/outside-link", file));
      await rm(join(model, file));
    }
  });

  it.each([
    "../secret.safetensors",
    "..",
    "/etc/secret.safetensors",
    "sub/model.safetensors",
    "..\\secret.safetensors",
    "C:model.safetensors",
    "model.safetensors:stream.safetensors",
    "a\u0000.safetensors",
    "",
    "model.bin",
    `${"n".repeat(300)}.safetensors`,
    7,
    null,
  ])("refuses %j as a shard's name", async (shard) => {
    await writeIndex({ [Q0.name]: FIRST, [Q1.name]: shard });
    await expect(openCheckpoint(folder)).rejects.toThrow(failing("model/bad-index", Q1.name));
  });

  it("refuses an index that is none", async () => {
    const index = join(folder, "model.safetensors.index.json");
    for (const text of ["", "{", "[]", "null", '{"weight_map":[]}', '{"weight_map":null}', "{}"]) {
      await writeFile(index, text);
      await expect(openCheckpoint(folder), text).rejects.toThrow(failing("model/bad-index", "index.json"));
    }
  });

  it("takes tensors called like JavaScript's own", async () => {
    await writeFile(join(folder, "model.safetensors.index.json"), `{"weight_map":{"__proto__":"${FIRST}"}}`);
    await using model = await openCheckpoint(folder);
    expect([...model.names()]).toEqual(["__proto__"]);
  });
});

describe("a model in one file", () => {
  it("is model.safetensors, before an index", async () => {
    await writeShards();
    await writeSafetensors(join(folder, "model.safetensors"), [NORM]);
    await using model = await openCheckpoint(folder);
    expect([...model.names()]).toEqual([NORM.name]);
    expect(await model.read(NORM.name)).toEqual(NORM.bytes);
    await expect(model.read(Q0.name)).rejects.toThrow(failing("model/missing-tensor", NORM.name));
  });

  it("or the only other safetensors file, adapters aside", async () => {
    await writeSafetensors(join(folder, "weights.safetensors"), [Q0]);
    await writeSafetensors(join(folder, "adapter_model.safetensors"), [Q1]);
    await using model = await openCheckpoint(folder);
    expect([...model.names()]).toEqual([Q0.name]);
  });

  it("is not guessed among several", async () => {
    await writeSafetensors(join(folder, "a.safetensors"), [Q0]);
    await writeSafetensors(join(folder, "b.safetensors"), [Q1]);
    await expect(openCheckpoint(folder)).rejects.toThrow(
      failing("model/ambiguous-weights", "a.safetensors, b.safetensors"),
    );
  });

  it("says what is wrong with the file", async () => {
    await writeFile(join(folder, "model.safetensors"), "version https://git-lfs.github.com/spec/v1\n");
    await expect(openCheckpoint(folder)).rejects.toMatchObject({
      code: "safetensors/header-too-large",
      fix: expect.stringContaining("git lfs pull"),
    });
  });
});

describe("folders that are no model", () => {
  it("does not exist", async () => {
    await expect(openCheckpoint(join(folder, "nowhere"))).rejects.toThrow(
      failing("model/missing", "nowhere", "model.safetensors.index.json"),
    );
  });

  it("is a file", async () => {
    await writeSafetensors(join(folder, "model.safetensors"), [Q0]);
    await expect(openCheckpoint(join(folder, "model.safetensors"))).rejects.toThrow(failing("model/not-a-directory"));
  });

  it("has no weights", async () => {
    await expect(openCheckpoint(folder)).rejects.toThrow(failing("model/no-weights", "model.safetensors"));
  });

  it("has weights in another format, and says how to convert them", async () => {
    await writeFile(join(folder, "pytorch_model-00001-of-00002.bin"), "");
    await writeFile(join(folder, "training_args.bin"), "");
    await expect(openCheckpoint(folder)).rejects.toMatchObject({
      code: "model/no-weights",
      message: expect.stringContaining("; pytorch_model-00001-of-00002.bin cannot be read"),
      fix: expect.stringContaining("save_pretrained"),
    });
  });
});

it("weights that GPTQ or AWQ packed are refused as such, not as missing", async () => {
  const packed = { ...NORM, name: "model.layers.0.self_attn.q_proj.qweight" };
  await writeSafetensors(join(folder, "model.safetensors"), [packed, NORM]);
  await using model = await openCheckpoint(folder);
  await expect(model.info("model.layers.0.self_attn.q_proj.weight")).rejects.toThrow(
    failing("model/unsupported-dtype", "q_proj.qweight", "GPTQ or AWQ"),
  );
  await expect(model.info("model.layers.0.self_attn.k_proj.weight")).rejects.toThrow(failing("model/missing-tensor"));
});

describe("readRows", () => {
  beforeEach(() => writeSafetensors(join(folder, "model.safetensors"), [EMBED, Q0, NORM]));

  const rowsOf = (bytes: Uint8Array) =>
    Array.from({ length: bytes.length / 8 }, (_, i) => [...bytes.subarray(i * 8, i * 8 + 8)]);
  const expected = (rows: readonly number[]) => rows.map((row) => new Array(8).fill(row));

  it.each([
    ["one", [42], 1],
    ["none", [], 0],
    ["the first and the last", [0, 99], 2],
    ["in the asked order", [7, 3, 5], 3],
    ["neighbours together", [10, 11, 12, 13], 4],
    ["repeated rows once", [5, 5, 9, 5, 8, 9], 3],
    ["many scattered ones", Array.from({ length: 50 }, (_, i) => 98 - 2 * i), 50],
  ])("gives %s", async (_what, rows, distinct) => {
    await using model = await openCheckpoint(folder);
    expect(rowsOf(await model.readRows(EMBED.name, rows))).toEqual(expected(rows));
    expect(model.log.bytes).toBe(distinct * 8);
    expect(model.log.tensors.get(EMBED.name) ?? 0).toBe(distinct * 8);
  });

  it("reads runs of neighbours in one read each, 16 reads at a time at most", async () => {
    await using file = await openSafetensors(join(folder, "model.safetensors"));
    const reads: number[] = [];
    let running = 0;
    let most = 0;
    const watched = {
      ...file,
      readInto: async (name: string, start: number, target: Uint8Array) => {
        reads.push(target.byteLength);
        most = Math.max(most, ++running);
        await file.readInto(name, start, target);
        running--;
      },
    };
    const { readTensorRows } = await import("../../weights/tensor-rows.ts");
    await readTensorRows(watched, EMBED.name, [4, 30, 3, 31, 5, 4, 60]);
    expect(reads).toEqual([24, 16, 8]);
    await readTensorRows(
      watched,
      EMBED.name,
      Array.from({ length: 50 }, (_, i) => 2 * i),
    );
    expect(most).toBe(16);
  });

  it("gives a range of rows", async () => {
    await using model = await openCheckpoint(folder);
    expect(rowsOf(await model.readRows(EMBED.name, { start: 97, count: 3 }))).toEqual(expected([97, 98, 99]));
    expect((await model.readRows(EMBED.name, { start: 100, count: 0 })).length).toBe(0);
  });

  it("refuses rows that are not there, and reads none of the others", async () => {
    await using model = await openCheckpoint(folder);
    for (const rows of [[1, 100], [-1], [0.5], [Number.NaN], { start: 99, count: 2 }, { start: -1, count: 1 }]) {
      await expect(model.readRows(EMBED.name, rows)).rejects.toThrow(failing("model/row-out-of-range", "rows 0 to 99"));
    }
    expect(model.log.bytes).toBe(0);
  });

  it("gives the elements of a vector as rows, and refuses tensors that are no matrix", async () => {
    const vector: TensorData = {
      name: "vector",
      dtype: "F32",
      shape: [3],
      bytes: Uint8Array.from({ length: 12 }, (_, i) => i),
    };
    const cube: TensorData = { name: "cube", dtype: "F32", shape: [1, 1, 1], bytes: new Uint8Array(4) };
    await writeSafetensors(join(folder, "model.safetensors"), [EMBED, vector, cube]);
    await using model = await openCheckpoint(folder);
    expect([...(await model.readRows("vector", [2, 0]))]).toEqual([8, 9, 10, 11, 0, 1, 2, 3]);
    expect([...(await model.readRows("vector", { start: 1, count: 2 }))]).toEqual([4, 5, 6, 7, 8, 9, 10, 11]);
    await expect(model.readRows("cube", [0])).rejects.toThrow(failing("model/not-a-matrix", "cube"));
  });

  it("gives columns of a matrix, and no others", async () => {
    const grid: TensorData = {
      name: "grid",
      dtype: "U8",
      shape: [20, 5],
      bytes: Uint8Array.from({ length: 100 }, (_, i) => i),
    };
    await writeSafetensors(join(folder, "model.safetensors"), [grid]);
    await using model = await openCheckpoint(folder);
    const expected = Array.from({ length: 20 }, (_, row) => [5 * row + 1, 5 * row + 2, 5 * row + 3]).flat();
    expect([...(await model.readColumns("grid", { start: 1, count: 3 }))]).toEqual(expected);
    expect(model.log.bytes).toBe(60);
    expect([...(await model.readColumns("grid", { start: 0, count: 5 }))]).toEqual([...grid.bytes]);
    for (const columns of [
      { start: 3, count: 3 },
      { start: -1, count: 2 },
      { start: 0, count: 1.5 },
    ]) {
      await expect(model.readColumns("grid", columns)).rejects.toThrow(failing("model/column-out-of-range", "grid"));
    }
  });

  it("names what is missing", async () => {
    await using model = await openCheckpoint(folder);
    await expect(model.readRows("embed", [0])).rejects.toThrow(failing("model/missing-tensor", EMBED.name));
  });
});

const sharded = resolve(import.meta.dirname, "../../../shared/golden/families/llama-sharded");

describe.skipIf(!existsSync(sharded))("a model saved by transformers (needs ../shared beside the repository)", () => {
  it("opens, and a read of block 0 touches only the shards of block 0", async () => {
    await using model = await openCheckpoint(sharded);
    const names = [...model.names()];
    expect(names.length).toBeGreaterThan(6 * 12);
    let bytes = 0;
    for (const name of names.filter((name) => name.startsWith("model.layers.0.")))
      bytes += (await model.read(name)).length;
    expect(bytes).toBeGreaterThan(0);
    expect(model.log.bytes).toBe(bytes);
    expect([...model.log.tensors.keys()].every((name) => name.startsWith("model.layers.0."))).toBe(true);
    // A header of each of the two shards that hold block 0, of eleven.
    const headers: number[] = [];
    for (const shard of (await readdir(sharded)).filter((file) => /^model-0000[12]-/.test(file))) {
      await using file = await openSafetensors(join(sharded, shard));
      headers.push(file.log.headerBytes);
    }
    expect(model.log.headerBytes).toBe(headers.reduce((sum, header) => sum + header, 0));
  });
});
