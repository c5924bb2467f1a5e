/** Bad lists among good ones: an error in their place, the others ranked, and never a NaN. */
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ErrorRecord, RankingRecord } from "../../scorer/rankings.ts";
import { loadTokenizer } from "../../weights/tokenizer.ts";
import {
  type CliRun,
  DEMO_MODEL,
  errorCodes,
  exampleLines,
  type Folder,
  jsonLines,
  lastJsonLine,
  stratum,
  temporaryFolder,
  writeTinyTextModel,
} from "../support/cli.ts";

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

type AnyRecord = RankingRecord | ErrorRecord;
const recordsOf = (run: CliRun) => jsonLines<AnyRecord>(run.stdout);
/** What a number must not become, outside of the words of a message. */
const NO_NUMBER = /[:,[]\s*(NaN|null|-?Infinity)/;
/** `id code` of an error, `id` and the number of results of a ranking. */
const told = (record: AnyRecord) =>
  "error" in record
    ? `${record.id} ${(record as ErrorRecord).error.code}`
    : `${record.id} ${(record as RankingRecord).results.length}`;

const long = "and then some more words ".repeat(200);
const line = (id: string, candidates: unknown) => JSON.stringify({ id, instruction: "What is it?", candidates });

/** Lines with what must become of each. */
const LINES: readonly (readonly [line: string | Buffer, told: string])[] = [
  [exampleLines[0]!, "garden-01 6"],
  ['{"id": "cut", "instruction": "a", "cand', "2 list/bad-json"],
  [line("none", []), "none list/no-candidates"],
  [line("one", ["It is a cat."]), "one 1"],
  [line("empty", ["It is a cat.", ""]), "empty list/empty-response"],
  [exampleLines[0]!, "garden-01 list/duplicate-id"],
  [line("long", ["It is a cat.", long]), "long list/too-long"],
  [Buffer.concat([Buffer.from('{"instruction": "'), Buffer.of(0xc3, 0x28), Buffer.from('"}')]), "8 list/bad-utf8"],
  ["[1, 2]", "9 list/bad-shape"],
  ['{"id": "half", "instruction": "\\ud800", "candidates": ["a"]}', "half list/bad-shape"],
  ["", ""],
  [exampleLines[1]!, "medicine-01 5"],
];
const bytesOf = (lines: readonly (string | Buffer)[]) =>
  Buffer.concat(lines.flatMap((each) => [Buffer.from(each), Buffer.from("\n")]));

describe("bad lines among good ones", () => {
  const expected = LINES.map(([, result]) => result).filter((result) => result !== "");
  const codes = expected.flatMap((result) => /\S+\/\S+/.exec(result) ?? []);
  const input = bytesOf(LINES.map(([text]) => text));

  it("give errors in their places, on stdout and stderr, and exit 1; the good ones are as they are alone", async () => {
    const run = await stratum(["rank", "--json"], { stdin: input });
    expect(run.code).toBe(1);
    const records = recordsOf(run);
    expect(records.map(told)).toEqual(expected);
    expect(errorCodes(run.stderr)).toEqual(codes);
    expect(run.stderr).not.toMatch(/^\s+at .+[:(]/m);
    expect(run.stdout).not.toMatch(NO_NUMBER);
    expect(lastJsonLine(run.stderr)).toMatchObject({ lists: expected.length, failed: codes.length });

    const good = LINES.filter(([, result]) => !/\/|^$/.test(result)).map(([text]) => text);
    const alone = await stratum(["rank"], { stdin: bytesOf(good) });
    expect(alone.code).toBe(0);
    expect(recordsOf(alone)).toEqual(records.filter((record) => !("error" in record)));
  });

  it("are counted by --dry-run as well", async () => {
    const run = await stratum(["rank", "--dry-run", "--json"], { stdin: input });
    expect(run.code).toBe(1);
    expect(errorCodes(run.stderr)).toEqual(codes);
    expect(jsonLines(run.stdout)).toMatchObject([{ lists: expected.length, failed: codes.length }]);
  });

  it("name every line in one place of the extracted index too", async () => {
    const out = join(folder.path, "states.safetensors");
    const texts = ['{"text": "good"}', '{"ids": [1, 4096]}', '{"text": "both", "ids": [1]}', '{"ids": []}', "no json"];
    const run = await stratum(["extract", "--layers", "0", "-o", out], { stdin: bytesOf(texts) });
    expect([run.code, run.stdout]).toEqual([1, ""]);
    const failed = ["tokenizer/mismatch", "list/bad-shape", "list/bad-shape", "list/bad-json"];
    expect(errorCodes(run.stderr)).toEqual(failed);
    const index = jsonLines(await folder.read("states.safetensors.index.jsonl"));
    expect(index).toEqual([
      { sequence: 0, line: 1, id: "1", tokens: expect.any(Number) },
      ...failed.map((code, i) => ({ line: i + 2, id: String(i + 2), error: expect.objectContaining({ code }) })),
    ]);
  });
});

describe("an input without a list", () => {
  it.each([
    ["rank", ["rank"]],
    ["rank --dry-run", ["rank", "--dry-run"]],
  ])("is an error: %s", async (_, args) => {
    const run = await stratum(args, { stdin: "\n \n\r\n" });
    expect([run.code, run.stdout, errorCodes(run.stderr)]).toEqual([1, "", ["list/empty-file"]]);
  });
});

describe("--truncate", () => {
  it("cuts what is too long, and says so in the record and nowhere else", async () => {
    const run = await stratum(["rank", "--truncate"], {
      stdin: bytesOf([line("long", ["It is a cat.", long, `${long} or other words`]), exampleLines[0]!]),
    });
    expect([run.code, errorCodes(run.stderr)]).toEqual([0, []]);
    const [cut, whole] = recordsOf(run) as RankingRecord[];
    expect(cut).toMatchObject({ id: "long", notes: { truncated: [1, 2] } });
    // Cut to the same tokens, the two long candidates have the same state.
    const score = (index: number) => cut!.results.find((result) => result.index === index)?.relevance_score;
    expect(score(1)).toBe(score(2));
    expect(score(0)).not.toBe(score(1));
    expect(whole).not.toHaveProperty("notes");
  });

  it("does not cut the prompt", async () => {
    const stdin = `${JSON.stringify({ instruction: long, candidates: ["a"] })}\n`;
    const run = await stratum(["rank", "--truncate"], { stdin });
    expect([run.code, errorCodes(run.stderr)]).toEqual([1, ["list/too-long"]]);
  });
});

describe("a template that reads the clock", () => {
  it("gets a fixed date, which every record names, and --date changes both", async () => {
    const directory = join(folder.path, "clock");
    await cp(DEMO_MODEL, directory, { recursive: true });
    const template =
      "{{ bos_token }}Today is {{ strftime_now('%d %B %Y') }}.{% for m in messages %}{{ m.content }}{% endfor %}";
    await writeFile(join(directory, "chat_template.jinja"), template);
    const rank = (...flags: string[]) =>
      stratum(["rank", "--model", directory, ...flags], { stdin: bytesOf(exampleLines.slice(0, 2)) });
    const runs = [await rank(), await rank("--date", "2024-02-29")];
    expect(runs.map(({ code }) => code)).toEqual([0, 0]);
    const dates = runs.map((run) => recordsOf(run).map((record) => (record as RankingRecord).notes?.date));
    expect(dates).toEqual(["2026-01-01", "2024-02-29"].map((date) => [date, date]));
    const scores = (run: CliRun) => (recordsOf(run) as RankingRecord[]).map(({ results }) => results);
    expect(scores(runs[1]!)).not.toEqual(scores(runs[0]!));
  });

  it("and a model without one is noted in every record", async () => {
    await using model = await writeTinyTextModel();
    await writeFile(join(model.directory, "tokenizer_config.json"), "{}");
    const run = await stratum(["rank", "--model", model.directory], { stdin: exampleLines[0]! });
    expect(run.code).toBe(0);
    expect(recordsOf(run)).toMatchObject([{ notes: { template: "none" } }]);
    expect(run.stderr).toMatch(/no chat template/);
  });
});

describe("NaN in the weights", () => {
  const poisoned = " zebra";
  const input = (words: readonly string[]) => bytesOf(words.map((word, i) => line(String(i), ["It is a cat", word])));

  it("fails the lists that meet it, and no other", async () => {
    const ids = (await loadTokenizer(DEMO_MODEL)).encode(poisoned, { addSpecialTokens: false });
    const bad = ids.at(-1)!;
    const poison = (name: string, values: Float32Array) => {
      const d = values.length / 4096;
      if (name === "model.embed_tokens.weight") values.fill(Number.NaN, bad * d, (bad + 1) * d);
    };
    await using sound = await writeTinyTextModel();
    await using broken = await writeTinyTextModel({ change: poison });
    const words = [" a dog", poisoned, " a bird"];
    const good = await stratum(["rank", "--model", sound.directory], { stdin: input(words) });
    const run = await stratum(["rank", "--model", broken.directory], { stdin: input(words) });
    expect([good.code, run.code]).toEqual([0, 1]);
    expect(recordsOf(run).map(told)).toEqual(["0 2", "1 state/not-finite", "2 2"]);
    expect(errorCodes(run.stderr)).toEqual(["state/not-finite"]);
    expect(run.stdout).not.toMatch(NO_NUMBER);
    const [first, , last] = recordsOf(good);
    expect([recordsOf(run)[0], recordsOf(run)[2]]).toEqual([first, last]);

    const out = join(folder.path, "nan.safetensors");
    const flags = ["--model", broken.directory, "--tokens", "all", "--layers", "0,1", "-o", out];
    const extracted = await stratum(["extract", ...flags], { stdin: `{"ids": [5, 6]}\n{"ids": [5, ${bad}, 6]}\n` });
    expect([extracted.code, errorCodes(extracted.stderr)]).toEqual([1, ["state/not-finite"]]);
    expect(extracted.stderr).toMatch(/line 2, sequence 0: a state of layer 0 holds NaN/);
  });

  it("fails every list where a whole matrix holds it", async () => {
    await using broken = await writeTinyTextModel({
      change: (name, values) => {
        if (name === "model.layers.0.mlp.down_proj.weight") values[7] = Number.NaN;
      },
    });
    const run = await stratum(["rank", "--model", broken.directory, "--layer", "1"], { stdin: input([" a", " b"]) });
    expect([run.code, recordsOf(run).map(told)]).toEqual([1, ["0 state/not-finite", "1 state/not-finite"]]);
    expect(run.stdout).not.toMatch(NO_NUMBER);
  });
});
