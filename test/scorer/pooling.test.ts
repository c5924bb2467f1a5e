/** Pooling `mean` from a list to its ranking: which tokens are averaged, and what the commands say of it. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { hiddenStates, loadModel, type Model } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { createListEncoder, type EncodeOptions, isPooling } from "../../scorer/encode.ts";
import { createExtractor, type ExtractedSequence } from "../../scorer/extract.ts";
import { type Fields, parseList, readSequences } from "../../scorer/lists.ts";
import { rank } from "../../scorer/rank.ts";
import { DEMO_MODEL, EXAMPLES, exampleLines, jsonLines, lastJsonLine, stratum } from "../support/cli.ts";
import { firstBitDifference } from "../support/compare.ts";

const LAYER = 2;
const MAX_POSITIONS = 512;
const engine = await createEngine();
let model: Model;
beforeAll(async () => {
  model = await loadModel(engine, DEMO_MODEL, { layer: LAYER });
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  engine[Symbol.dispose]();
});

const record = JSON.parse(exampleLines[0]!) as Fields;
const list = parseList(record, "1");

async function encode(candidates: readonly string[], options: EncodeOptions = {}) {
  const encoder = await createListEncoder(model.files, options);
  return encoder.encode(parseList({ instruction: "What is it?", candidates }, "1")).group;
}

describe("a list's encoding", () => {
  it("names the first token of every response, and the prompt's last token for itself", async () => {
    const texts = ["A cat.", " dog", "\n\nTwo lines.\n"];
    const { sequences, poolFrom } = await encode(texts, { pooling: "mean" });
    const tokenizer = await model.files.tokenizer();
    const [prompt, ...responses] = sequences;
    expect(poolFrom?.[0]).toBeNull();
    for (const [i, response] of responses.entries()) {
      const from = poolFrom![i + 1]!;
      // The tokens before it are the prompt's own; a token across the border is the response's.
      expect(response.slice(0, from)).toEqual(prompt.slice(0, from));
      expect(response[from]).not.toBe(prompt[from]);
      expect(tokenizer.decode(response.slice(from))).toContain(texts[i]!.trim());
    }
    expect(sequences).toEqual((await encode(texts)).sequences);
  });

  it("says nothing with the other poolings", async () => {
    for (const pooling of ["last", "end"] as const)
      expect((await encode(["A cat."], { pooling })).poolFrom).toBeUndefined();
  });

  it("names the last K tokens of a response, or all where there are fewer", async () => {
    const texts = ["A cat.", "A cat that sat on the mat for a whole day."];
    const whole = await encode(texts, { pooling: "mean" });
    const { sequences, poolFrom } = await encode(texts, { pooling: "last-5" });
    const lengths = sequences.slice(1).map((ids, i) => ids.length - whole.poolFrom![i + 1]!);
    expect(lengths[0]).toBeLessThan(5);
    expect(lengths[1]).toBeGreaterThan(5);
    expect(poolFrom).toEqual([null, whole.poolFrom![1], sequences[2]!.length - 5]);
  });

  it.each(["last-0", "last-", "last--1", "last-1.5", "Last", "max"])("is none called %s", (name) => {
    expect(isPooling(name)).toBe(false);
  });

  it("of a cut response has the tokens that are left", async () => {
    const options = { pooling: "mean", truncate: true } as const;
    const { sequences, poolFrom } = await encode([" word".repeat(MAX_POSITIONS), "short"], options);
    expect(sequences[1]).toHaveLength(MAX_POSITIONS);
    expect(poolFrom).toEqual([null, sequences[0]!.length, sequences[0]!.length]);
  });
});

/** The mean over a list's response tokens, and its prompt's last state, in float64 from the states of all tokens. */
async function meansInFloat64(): Promise<number[][]> {
  const { sequences, poolFrom } = (await createListEncoder(model.files, { pooling: "mean" })).encode(list).group;
  const all = await hiddenStates(model, sequences, { layers: [LAYER], tokens: "all" });
  const d = model.files.spec.config.hiddenSize;
  return all.map((states, s) => {
    const from = poolFrom![s] ?? sequences[s]!.length - 1;
    const count = sequences[s]!.length - from;
    return Array.from({ length: d }, (_, i) => {
      let sum = 0;
      for (let t = 0; t < count; t++) sum += states[(from + t) * d + i]!;
      return sum / count;
    });
  });
}

describe("with pooling mean", () => {
  it("a list is ranked by the cosines of the means", async () => {
    const [prompt, ...responses] = await meansInFloat64();
    const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
    const cosines = responses.map((mean) => dot(prompt!, mean) / Math.sqrt(dot(prompt!, prompt!) * dot(mean, mean)));
    const [ranked] = await rank(model, [record], { pooling: "mean" });
    expect(ranked!.results).toHaveLength(cosines.length);
    for (const { index, relevance_score } of ranked!.results)
      expect(Math.abs(relevance_score - cosines[index]!)).toBeLessThan(1e-6);
    expect(await rank(model, [record])).not.toEqual([ranked]);
    for (const other of [{ sharePrefix: false }, { batchTokens: 80 }])
      expect(await rank(model, [record], { pooling: "mean", ...other })).toEqual([ranked]);
  });

  it("extract gives the pooled states of lists, the last token's of texts and ids, and all tokens' where asked", async () => {
    const lines = [exampleLines[0]!, '{"text": "Boil the water."}', '{"ids": [1, 2, 3]}'];
    const run = async (tokens: "last" | "all", pooling: "last" | "mean") => {
      using extractor = await createExtractor(model, { layers: [LAYER], tokens, pooling });
      const found: ExtractedSequence[] = [];
      const source = (async function* () {
        yield Buffer.from(lines.join("\n"));
      })();
      for await (const outcome of extractor.extract(readSequences(source))) {
        if (outcome.kind === "failed") throw outcome.error;
        found.push(...outcome.sequences);
      }
      return found;
    };
    const [means, lasts, wanted] = [await run("last", "mean"), await run("last", "last"), await meansInFloat64()];
    expect(means).toHaveLength(wanted.length + 2);
    for (const [i, mean] of wanted.entries())
      for (const [at, value] of mean.entries()) expect(Math.abs(means[i]!.states[at]! - value)).toBeLessThan(1e-5);
    const same = means.map(({ states }, i) => firstBitDifference(states, lasts[i]!.states) === undefined);
    expect(same).toEqual(means.map((_, i) => i === 0 || i >= wanted.length));
    expect(await run("all", "mean")).toEqual(await run("all", "last"));
  });

  it("the command prints what the library gives; its plan is what it holds, and what a dry run says", async () => {
    const flags = ["rank", EXAMPLES, "--pooling", "mean", "--json"];
    const run = await stratum(flags);
    expect(run.code).toBe(0);
    const summary = lastJsonLine(run.stderr);
    expect(summary["gpu_live_bytes"]).toBe(summary["gpu_bytes"]);
    const records = exampleLines.map((line) => JSON.parse(line) as Fields);
    const ranked = await rank(model, records, { pooling: "mean" });
    expect(jsonLines(run.stdout)).toEqual(JSON.parse(JSON.stringify(ranked)));
    const dry = await stratum([...flags, "--dry-run"]);
    const [estimate] = jsonLines(dry.stdout);
    expect(estimate!["gpu_bytes"]).toBe(summary["gpu_bytes"]);
    const [last] = jsonLines((await stratum(["rank", EXAMPLES, "--dry-run", "--json"])).stdout);
    expect(estimate!["flops"]).toBeGreaterThan(last!["flops"] as number);
    expect(run.stderr).toContain(`(${(summary["gpu_bytes"] as number).toLocaleString("en-US")} bytes)`);
  });
});
