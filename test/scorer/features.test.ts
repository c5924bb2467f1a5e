/** Features of lists, computed and cached: the states that each list has alone, kept under all that they depend on. */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { cp, mkdir, readFile, rm, truncate, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { hiddenStates, loadModel, type Model } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { createListEncoder } from "../../scorer/encode.ts";
import { computeFeatures, type LeftOut, writeFeatures } from "../../scorer/features.ts";
import { type CachedFeatures, type CacheRequest, cachedFeatures, featuresFolder } from "../../scorer/features-cache.ts";
import { openFeatures } from "../../scorer/features-file.ts";
import { type ListLine, readLists } from "../../scorer/lists.ts";
import { chunks, collect } from "../support/chunks.ts";
import { DEMO_MODEL, exampleLines, type Folder, temporaryFolder, writeTinyTextModel } from "../support/cli.ts";
import { firstBitDifference } from "../support/compare.ts";
import { failing } from "../support/failing.ts";
import { readList } from "../support/features.ts";

const RACE = fileURLToPath(new URL("../support/race-features.ts", import.meta.url));

const engine = await createEngine();
let model: Model;
let folder: Folder;
beforeAll(async () => {
  model = await loadModel(engine, DEMO_MODEL, { layer: 2 });
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  engine[Symbol.dispose]();
});
beforeEach(async () => {
  folder = await temporaryFolder();
});
afterEach(() => folder[Symbol.asyncDispose]());

const many = Array.from({ length: 300 }, (_, i) => `Answer ${i}.`);
const LINES = [
  exampleLines[0]!,
  '{"id": "one", "instruction": "How?", "candidates": [{"text": "So.", "label": 1}]}',
  '{"id": 7, "instruction": "How?", "candidates": [{"text": "So.", "label": true}, "Not so.", {"text": "Or", "label": -2}]}',
  "not JSON",
  '{"id": "empty", "instruction": "How?", "candidates": ["So.", ""]}',
  `{"id": "long", "instruction": "How?", "candidates": ["${"word ".repeat(700)}"]}`,
  '{"id": "grade", "instruction": "How?", "candidates": [{"text": "So.", "label": 1e300}]}',
  JSON.stringify({ id: "many", instruction: "Which?", candidates: many }),
];
const KEPT = ["garden-01", "one", 7, "many"];
const LEFT = [
  ["4", "list/bad-json"],
  ["empty", "list/empty-response"],
  ["long", "list/too-long"],
  ["grade", "list/bad-label"],
];
const linesOf = (lines: readonly string[]) => () => readLists(chunks(Buffer.from(lines.join("\n"))));

describe("computeFeatures", () => {
  it.each(["last", "mean"] as const)(
    "gives lists of 1 to 300 their own states, and leaves the others out: %s",
    async (pooling) => {
      const layers = [2, 0, 1];
      const left: LeftOut[] = [];
      const onLeftOut = (one: LeftOut) => left.push(one);
      const found = await collect(computeFeatures(model, linesOf(LINES)(), { layers, pooling, onLeftOut }));
      expect(found.map(({ id }) => id)).toEqual(KEPT);
      expect(left.map(({ id, error }) => [id, error.code])).toEqual(LEFT);
      expect(left.map(({ line }) => line)).toEqual([4, 5, 6, 7]);
      expect(found.map(({ labels }) => labels.length)).toEqual([6, 1, 3, 300]);
      expect([...found[2]!.labels]).toEqual([1, Number.NaN, -2]);
      if (pooling === "mean") return;
      const encoder = await createListEncoder(model.files);
      const lists = new Map((await collect(linesOf(LINES)())).map((line) => [line.id, line]));
      for (const { id, states } of found) {
        const line = lists.get(id) as Extract<ListLine, { kind: "list" }>;
        const { group } = encoder.encode(line.list);
        for (const [s, ids] of group.sequences.entries()) {
          if (s > 8 && s % 37 !== 0) continue;
          const [alone] = await hiddenStates(model, [ids], { layers });
          for (const [k, rows] of states.entries()) {
            const [own, expected] = [rows, alone!].map((all, i) =>
              all.subarray((i ? k : s) * 192, ((i ? k : s) + 1) * 192),
            );
            expect(firstBitDifference(own!, expected!), `${id}, sequence ${s}, layer ${layers[k]}`).toBeUndefined();
          }
        }
      }
    },
  );

  it("gives several poolings out of one pass, bit for bit those of a pass each", async () => {
    const poolings = ["last", "mean", "end", "last-3", "last-1"] as const;
    const layers = [1, 2];
    const all = await collect(computeFeatures(model, linesOf(LINES.slice(0, 3))(), { layers, poolings }));
    for (const [p, pooling] of poolings.entries()) {
      const own = await collect(computeFeatures(model, linesOf(LINES.slice(0, 3))(), { layers, pooling }));
      for (const [b, { states, tokens }] of own.entries()) {
        if (pooling === "last") expect(all[b]!.tokens).toBe(tokens);
        for (const [k, rows] of states.entries())
          expect(
            firstBitDifference(all[b]!.states[k * poolings.length + p]!, rows),
            `${pooling}, list ${b}`,
          ).toBeUndefined();
      }
    }
    // The last token and the last one are the same; the mean over three tokens and over all of a long response are not.
    const [{ states }] = all;
    expect(firstBitDifference(states[4]!, states[0]!)).toBeUndefined();
    expect(firstBitDifference(states[3]!, states[1]!)).toBeDefined();
  });

  it("writes a file a layer", async () => {
    const paths = [1, 2].map((layer) => join(folder.path, `layer-${layer}.safetensors`));
    const options = { layers: [1, 2] };
    const ids = await writeFeatures(computeFeatures(model, linesOf(LINES)(), options), paths, 192);
    expect(ids).toEqual(KEPT);
    const computed = await collect(computeFeatures(model, linesOf(LINES)(), options));
    for (const [k, path] of paths.entries()) {
      await using source = await openFeatures(path);
      expect([...source.offsets]).toEqual([0, 6, 7, 10, 310]);
      for (const [b, { states }] of computed.entries())
        expect(firstBitDifference(await readList(source, b), states[k]!)).toBeUndefined();
    }
  });

  it("ends with the signal's reason, and leaves no file", async () => {
    const stop = new AbortController();
    const path = join(folder.path, "f.safetensors");
    async function* lines(): AsyncGenerator<ListLine> {
      yield* linesOf(LINES)();
      stop.abort(new Error("enough"));
    }
    const features = computeFeatures(model, lines(), { layers: [1], signal: stop.signal });
    await expect(writeFeatures(features, [path], 192)).rejects.toThrow("enough");
    expect(readdirSync(folder.path)).toEqual([]);
  });
});

describe("cachedFeatures", () => {
  let opened = 0;
  let notes: string[] = [];
  beforeEach(() => {
    opened = 0;
    notes = [];
  });
  const request = (change: Partial<CacheRequest> = {}): CacheRequest => ({
    layers: [1],
    lines: linesOf(LINES),
    model: async () => {
      opened++;
      return model;
    },
    directory: DEMO_MODEL,
    fingerprint: "fingerprint",
    adapter: "adapter",
    kernels: "kernels",
    version: "1",
    folder: join(folder.path, "cache"),
    onNote: (text) => notes.push(text),
    ...change,
  });
  const cached = () => readdirSync(join(folder.path, "cache")).sort();
  /** All states of a result, layer by layer. */
  async function statesOf({ layers }: CachedFeatures): Promise<Float32Array[]> {
    const all: Float32Array[] = [];
    for (const { source } of layers) for (let b = 0; b < source.lists; b++) all.push(await readList(source, b));
    return all;
  }

  it("computes once, and then opens no model", async () => {
    const before = await (async () => {
      await using first = await cachedFeatures(request({ layers: [1, 2] }));
      expect(opened).toBe(1);
      expect(first.layers.map(({ layer, reused }) => [layer, reused])).toEqual([
        [1, false],
        [2, false],
      ]);
      return await statesOf(first);
    })();
    expect(cached().map((name) => name.replace(/^[0-9a-f]{64}/, "#"))).toEqual([
      "#.json",
      "#.safetensors",
      "#.json",
      "#.safetensors",
    ]);
    // Another order, a layer twice, a layer of a larger pass: all there.
    await using second = await cachedFeatures(request({ layers: [2, 1] }));
    expect(opened).toBe(1);
    expect(second.layers.map(({ layer, reused }) => [layer, reused])).toEqual([
      [2, true],
      [1, true],
    ]);
    expect(await statesOf(second)).toEqual([...before.slice(4), ...before.slice(0, 4)]);
    for (const { ids, leftOut } of second.layers) {
      expect(ids).toEqual(KEPT);
      expect(leftOut.map(({ id, error }) => [id, error.code])).toEqual(LEFT);
    }
    await using third = await cachedFeatures(request({ layers: [0, 1] }));
    expect(third.layers.map(({ reused }) => reused)).toEqual([false, true]);
    expect(opened).toBe(2);
    expect(notes).toEqual([]);
  });

  it("computes the poolings that are not there in one pass, and takes the others from the cache", async () => {
    const lines = linesOf(LINES.slice(0, 2));
    const ask = (poolings: CacheRequest["poolings"]) => cachedFeatures(request({ layers: [1, 2], lines, poolings }));
    await using mean = await cachedFeatures(request({ layers: [1, 2], lines, pooling: "mean" }));
    await using both = await ask(["last", "mean", "end"]);
    expect(opened).toBe(2);
    expect(both.layers.map(({ layer, pooling, reused }) => [layer, pooling, reused])).toEqual([
      [1, "last", false],
      [1, "mean", true],
      [1, "end", false],
      [2, "last", false],
      [2, "mean", true],
      [2, "end", false],
    ]);
    expect(both.layers[1]!.path).toBe(mean.layers[0]!.path);
    await using last = await ask(["last"]);
    expect([opened, last.layers[1]!.path]).toEqual([2, both.layers[3]!.path]);
  });

  it("says in clear what an entry is made of", async () => {
    await using made = await cachedFeatures(request({ system: "Be brief.", truncate: true }));
    const entry = JSON.parse(readFileSync(made.layers[0]!.path.replace(".safetensors", ".json"), "utf8"));
    expect(entry).toMatchObject({
      ids: expect.any(Array),
      left_out: expect.any(Array),
      key: {
        layer: 1,
        pooling: "last",
        system: "Be brief.",
        truncate: true,
        date: "2026-01-01",
        adapter: "adapter",
        kernels: "kernels",
        version: "1",
        data: expect.stringMatching(/^[0-9a-f]{64}$/),
        model: {
          fingerprint: "fingerprint",
          files: expect.arrayContaining([["model.safetensors", expect.any(Number), expect.any(Number)]]),
        },
      },
    });
  });

  const relabelled = LINES.map((line) => line.replace('"label": 1}', '"label": 0}'));
  it.each<[string, Partial<CacheRequest>]>([
    ["another layer", { layers: [2] }],
    ["another pooling", { pooling: "mean" }],
    ["another system message", { system: "" }],
    ["another date", { date: "2026-01-02" }],
    ["truncated responses", { truncate: true }],
    ["another model", { fingerprint: "other" }],
    ["another adapter", { adapter: "other" }],
    ["other kernels", { kernels: "other" }],
    ["another version", { version: "2" }],
    ["another label", { lines: linesOf(relabelled) }],
    ["another order", { lines: linesOf([...LINES].reverse()) }],
    ["another text", { lines: linesOf(LINES.map((line) => line.replace("Not so.", "Not so!"))) }],
    ["another id", { lines: linesOf(LINES.map((line) => line.replace('"id": 7', '"id": "7"'))) }],
    ["another instruction", { lines: linesOf(LINES.map((line) => line.replace("How?", "Why?"))) }],
    ["fewer lists", { lines: linesOf(LINES.slice(1)) }],
  ])("computes again for %s", async (_, change) => {
    const short = linesOf(LINES.slice(0, 7));
    await using first = await cachedFeatures(request({ lines: short }));
    const lines = change.lines ?? short;
    await using second = await cachedFeatures(request({ ...change, lines }));
    expect(opened).toBe(2);
    expect(second.layers[0]!.path).not.toBe(first.layers[0]!.path);
  });

  it("computes again when a file of the model has another time or size", async () => {
    await using tiny = await writeTinyTextModel();
    await using small = await loadModel(engine, tiny.directory, { layer: 1 });
    const open = async () => {
      opened++;
      return small;
    };
    const ask = () => cachedFeatures(request({ directory: tiny.directory, model: open }));
    await using first = await ask();
    await utimes(join(tiny.directory, "model.safetensors"), 1e9, 1e9);
    await using second = await ask();
    await using third = await ask();
    expect(opened).toBe(2);
    expect(new Set([first, second, third].map(({ layers }) => layers[0]!.path)).size).toBe(2);
    expect(third.layers[0]!.reused).toBe(true);
  });

  const damages: [string, (path: string) => Promise<unknown>][] = [
    ["a cut file", async (path) => truncate(path, 5000)],
    [
      "a flipped bit",
      async (path) => {
        const bytes = await readFile(path);
        bytes[bytes.length >> 1]! ^= 1;
        await writeFile(path, bytes);
      },
    ],
    ["no features", (path) => rm(path)],
    [
      "a folder in their place",
      async (path) => {
        await rm(path);
        await mkdir(path);
        await rm(path, { recursive: true });
      },
    ],
    ["a JSON that is none", (path) => writeFile(path.replace(".safetensors", ".json"), "{")],
    ["a JSON without ids", (path) => writeFile(path.replace(".safetensors", ".json"), "{}")],
    [
      "fewer ids",
      async (path) => {
        const json = path.replace(".safetensors", ".json");
        const entry = JSON.parse(await readFile(json, "utf8")) as { ids: unknown[] };
        await writeFile(json, JSON.stringify({ ...entry, ids: entry.ids.slice(1) }));
      },
    ],
  ];
  it.each(damages)("computes again where there is %s, and says so", async (_, damage) => {
    const lines = linesOf(LINES.slice(0, 4));
    const path = await (async () => {
      await using first = await cachedFeatures(request({ lines }));
      return first.layers[0]!.path;
    })();
    await damage(path);
    await using second = await cachedFeatures(request({ lines }));
    expect([opened, notes.length, second.layers[0]!.reused]).toEqual([2, 1, false]);
    expect(notes[0]).toContain(path);
    await using third = await cachedFeatures(request({ lines }));
    expect([opened, notes.length, third.layers[0]!.reused]).toEqual([2, 1, true]);
    expect(await statesOf(third)).toEqual(await statesOf(second));
  });

  it("does not let what one pass could not do speak for another", async () => {
    const lines = linesOf(LINES.slice(0, 2));
    await using small = await cachedFeatures(request({ lines, batchTokens: 40 }));
    expect(small.layers[0]!.leftOut.map(({ error }) => error.code)).toContain("list/over-budget");
    await using again = await cachedFeatures(request({ lines, batchTokens: 40 }));
    expect([opened, again.layers[0]!.reused]).toEqual([1, true]);
    await using large = await cachedFeatures(request({ lines }));
    expect([opened, large.layers[0]!.leftOut]).toEqual([2, []]);
    // What was left out of nothing serves every pass.
    await using last = await cachedFeatures(request({ lines, batchTokens: 40 }));
    expect([opened, last.layers[0]!.reused]).toEqual([2, true]);
  });

  it("refuses lists that change while they are read, and leaves nothing behind", async () => {
    let reading = 0;
    const lines = () => linesOf(reading++ === 0 ? LINES.slice(0, 2) : LINES.slice(0, 3))();
    await expect(cachedFeatures(request({ lines }))).rejects.toThrow(failing("features/data-changed"));
    expect(cached()).toEqual([]);
    await expect(cachedFeatures(request({ model: () => Promise.reject(new Error("no GPU")) }))).rejects.toThrow(
      "no GPU",
    );
    expect(cached()).toEqual([]);
  });

  it("says where the cache lies when it cannot be written", async () => {
    await writeFile(join(folder.path, "file"), "");
    const refused = cachedFeatures(request({ folder: join(folder.path, "file", "cache") }));
    await expect(refused).rejects.toThrow(
      expect.objectContaining({ code: "file/write-failed", fix: expect.stringContaining("XDG_CACHE_HOME") }),
    );
    expect(opened).toBe(0);
  });

  it("lies in the user's cache folder", () => {
    const before = process.env["XDG_CACHE_HOME"];
    try {
      process.env["XDG_CACHE_HOME"] = "/somewhere";
      expect(featuresFolder()).toBe("/somewhere/stratum/features");
      process.env["XDG_CACHE_HOME"] = "relative";
      expect(featuresFolder()).toMatch(/\/\.cache\/stratum\/features$/);
    } finally {
      if (before === undefined) delete process.env["XDG_CACHE_HOME"];
      else process.env["XDG_CACHE_HOME"] = before;
    }
  });

  it("removes what a killed process left long ago, and nothing that may be in use", async () => {
    const cache = join(folder.path, "cache");
    // Numbers that no process has, and this one's: it works there, whatever the clock says.
    const [old, young, ours] = [99_999_998, 99_999_999, process.pid].map(
      (pid) => `pass.${pid}-0123456789ab.partial`,
    ) as [...[string, string, string]];
    for (const name of [old, young, ours]) await mkdir(join(cache, name), { recursive: true });
    await writeFile(join(cache, old, "layer-1.safetensors"), "");
    for (const name of [old, ours]) await utimes(join(cache, name), 1e9, 1e9);
    await using made = await cachedFeatures(request({ lines: linesOf(LINES.slice(0, 2)) }));
    expect(made.layers).toHaveLength(1);
    expect(existsSync(join(cache, old))).toBe(false);
    expect([young, ours].map((name) => existsSync(join(cache, name)))).toEqual([true, true]);
  });

  it("serves two processes that ask at once", async () => {
    const cache = join(folder.path, "cache");
    const lists = await folder.write("lists.jsonl", LINES.join("\n"));
    const directory = join(folder.path, "model");
    await cp(DEMO_MODEL, directory, { recursive: true });
    const run = () =>
      new Promise<{ ids: unknown[]; reused: boolean; notes: string[]; states: string }>((resolve, reject) => {
        const child = spawn(process.execPath, ["--import", "tsx", RACE, cache, directory, lists]);
        let [out, errors] = ["", ""];
        child.stdout.on("data", (chunk: Buffer) => (out += chunk.toString()));
        child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
        child.on("close", (code) => (code === 0 ? resolve(JSON.parse(out)) : reject(new Error(errors))));
      });
    const both = await Promise.all([run(), run()]);
    for (const one of both) expect(one).toMatchObject({ ids: KEPT, notes: [] });
    expect(both[0].states).toBe(both[1].states);
    expect(cached()).toHaveLength(4);
    expect(await run()).toEqual({ ...both[0], reused: true });
  });
});
