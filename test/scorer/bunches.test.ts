import { expect, it } from "vitest";
import { mapBunches } from "../../scorer/bunches.ts";

const collect = async <T>(items: AsyncIterable<T>) => {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
};

it("maps every line once, in order, however many there are and however they come", async () => {
  const many = Array.from({ length: 1000 }, (_, i) => i);
  async function* source() {
    for (const i of many) {
      if (i % 7 === 0) await new Promise((resolve) => setImmediate(resolve));
      if (i % 300 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
      yield i;
    }
  }
  const seen: number[] = [];
  const prepare = async (bunch: readonly number[]) => {
    seen.push(...bunch);
  };
  expect(await collect(mapBunches(source(), (i) => 2 * i, prepare))).toEqual(many.map((i) => 2 * i));
  expect(seen).toEqual(many);
});

it("answers what is there before it waits for more", async () => {
  let go: () => void = () => undefined;
  const asked = new Promise<void>((resolve) => {
    go = resolve;
  });
  async function* source() {
    yield 1;
    yield 2;
    await asked;
    yield 3;
  }
  const mapped = mapBunches(source(), (i) => i);
  expect([(await mapped.next()).value, (await mapped.next()).value]).toEqual([1, 2]);
  go();
  expect(await mapped.next()).toEqual({ done: false, value: 3 });
  expect((await mapped.next()).done).toBe(true);
});

it("throws the source's error behind what came before it", async () => {
  async function* source() {
    yield 1;
    yield 2;
    throw new Error("torn");
  }
  const mapped = mapBunches(source(), (i) => i);
  expect([(await mapped.next()).value, (await mapped.next()).value]).toEqual([1, 2]);
  await expect(mapped.next()).rejects.toThrow("torn");
});

it("ends its source when it is left", async () => {
  let ended = false;
  async function* source() {
    try {
      for (let i = 0; ; i++) yield i;
    } finally {
      ended = true;
    }
  }
  for await (const i of mapBunches(source(), (i) => i)) if (i === 300) break;
  await new Promise((resolve) => setImmediate(resolve));
  expect(ended).toBe(true);
});
