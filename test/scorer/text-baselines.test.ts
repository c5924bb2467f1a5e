import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { type List, readLists } from "../../scorer/lists.ts";
import { measureLists, randomMeasures, summarise } from "../../scorer/measures.ts";
import {
  hasRefusal,
  labelsOf,
  REFUSAL_PHRASES,
  randomText,
  refusalText,
  scoreTexts,
  shortestText,
  type TextList,
  type TextScorer,
  trainBagOfWords,
} from "../../scorer/text-baselines.ts";

function list(...candidates: readonly (readonly [text: string, label?: number])[]): TextList {
  return { candidates: candidates.map(([text, label]) => (label === undefined ? { text } : { text, label })) };
}

describe("hasRefusal", () => {
  it.each([
    ...REFUSAL_PHRASES,
    "I’m sorry, but no.",
    "Well... I CANNOT do that",
    "I'm\n  unable to help",
    "(I can't.)",
    "¡I won't!",
  ])("finds one in %j", (text) => {
    expect(hasRefusal(text)).toBe(true);
  });

  it.each(["", "Sure!", "Hawaii cannot", "I cannoteer", "as an aid", "Magi can't", "It is illegal."])(
    "finds none in %j",
    (text) => {
      expect(hasRefusal(text)).toBe(false);
    },
  );
});

describe("rules", () => {
  it("the shortest is the best, whatever white space is around", () => {
    expect([...shortestText(list(["four"], ["  one \n"], [""]))]).toEqual([-4, -3, -0]);
  });

  it("a refusal phrase is 1", () => {
    expect([...refusalText(list(["I cannot help"], ["Sure"]))]).toEqual([1, 0]);
  });

  it("random scores: one seeded stream", () => {
    const [a, b, other] = [randomText(1), randomText(1), randomText(2)];
    const pair = list(["x"], ["y"]);
    expect(a(pair)).toEqual(b(pair));
    expect(a(pair)).not.toEqual(other(pair));
    expect(new Set([...b(pair), ...b(pair)]).size).toBe(4);
  });
});

describe("trainBagOfWords", () => {
  const random = seededRandom(8);
  const fill = () => ["the", "a", "of", "and", "to"][Math.floor(random() * 5)];
  const lists = Array.from({ length: 60 }, (_, b) =>
    list([`${fill()} Kind ${fill()} ${fill()} once${b}`, 1], [`${fill()} ${fill()} cruel, ${fill()}`, 0]),
  );

  it("learns the words that tell, in any case and beside any sign", () => {
    const { score, words, model } = trainBagOfWords(lists);
    const scores = score(list(["KIND!"], ["the of"], ["‘cruel’"]));
    expect(scores[0]).toBeGreaterThan(scores[1]);
    expect(scores[1]).toBeGreaterThan(scores[2]);
    expect(model.converged).toBe(true);
    expect(words).not.toContain("once0");
    expect(words).toContain("kind");
  });

  it("keeps apostrophes inside words, marks on letters, and Han characters apart", () => {
    const text = "don’t 'quoted' café 你好 नमस्ते x2";
    const { words } = trainBagOfWords([list([text, 1], [text, 0])]);
    expect(words).toEqual(["café", "don't", "quoted", "x2", "नमस्ते", "你", "好"]);
  });

  it("unknown words, empty texts, no words, one class, no lists: finite and tied", () => {
    for (const training of [
      lists,
      [],
      [list(["one", 1], ["one", 1])],
      [list(["", 1], ["", 0])],
      [list(["a"], ["b"])],
    ]) {
      const scores = trainBagOfWords(training).score(list(["zzz"], [""], ["zzz zzz"]));
      expect([...scores].every(Number.isFinite)).toBe(true);
      expect(new Set(scores).size).toBe(1);
    }
  });

  it("is deterministic", () => {
    expect(trainBagOfWords(lists).model).toEqual(trainBagOfWords(lists).model);
  });
});

const SHARED = new URL("../../../shared/data/saferlhf.jsonl", import.meta.url).pathname;
describe.skipIf(!existsSync(SHARED))("../shared/data/saferlhf.jsonl (skipped where that file is absent)", () => {
  const read = async () => {
    const lists: List[] = [];
    for await (const item of readLists(SHARED)) if (item.kind === "list") lists.push(item.list);
    return lists;
  };
  const topOne = (lists: readonly TextList[], score: TextScorer) =>
    summarise(measureLists(scoreTexts(lists, score), labelsOf(lists)).top1).mean;

  it("rules are near chance: random 0.50, shortest 0.52, refusal keywords 0.52", async () => {
    const lists = await read();
    expect(summarise(randomMeasures(labelsOf(lists)).top1).mean).toBeCloseTo(0.4986, 4);
    expect(topOne(lists, shortestText)).toBeCloseTo(0.5201, 4);
    expect(topOne(lists, refusalText)).toBeCloseTo(0.52, 1);
  });

  it("bag of words, 70/30 by instruction, is well above them", async () => {
    const lists = await read();
    const found = [0, 1, 2, 3, 4].map((seed) => {
      const random = seededRandom(seed);
      const keys = lists.map(() => random());
      const order = lists.map((_, b) => b).sort((a, b) => keys[a] - keys[b]);
      const cut = Math.round(0.7 * lists.length);
      const [train, test] = [order.slice(0, cut), order.slice(cut)].map((part) => part.map((b) => lists[b]));
      return topOne(test, trainBagOfWords(train).score) ?? 0;
    });
    // One split of 149 lists has a standard deviation of 0.04.
    const mean = found.reduce((sum, value) => sum + value, 0) / found.length;
    expect(mean, found.join(" ")).toBeGreaterThan(0.6);
    expect(mean, found.join(" ")).toBeLessThan(0.75);
  });
});
