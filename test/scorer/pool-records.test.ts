/** The records of a pool, whoever packs them. */
import { deflateRawSync, gunzipSync, gzipSync } from "node:zlib";
import { expect, it } from "vitest";
import { makeChunk, packText, readChunk } from "../../scorer/pool-records.ts";
import { failing } from "../support/failing.ts";

const ITEMS = Array.from({ length: 50 }, (_, i) => ({
  line: i + 1,
  list: JSON.stringify({ instruction: `question ${i * i}`, candidates: ["a"] }),
}));

it("a chunk has the name of what it holds, however that was compressed", () => {
  const { jobId, data } = makeChunk("run", 3, ITEMS);
  const text = gunzipSync(Buffer.from(data.items, "base64"));
  const others = [1, 9].map((level) => gzipSync(text, { level }).toString("base64"));
  expect(new Set([data.items, ...others]).size).toBeGreaterThan(1);
  for (const items of others) expect(readChunk({ ...data, items }, jobId).map(({ line }) => line)).toHaveLength(50);
  expect(makeChunk("run", 4, ITEMS).jobId).not.toBe(jobId);
  expect(makeChunk("other", 3, ITEMS).jobId).not.toBe(jobId);
  expect(() => readChunk({ ...data, index: 4 }, jobId)).toThrow(failing("queue/damaged", "another name"));
  const cut = deflateRawSync(text).toString("base64");
  expect(() => readChunk({ ...data, items: cut }, jobId)).toThrow(failing("queue/damaged"));
});

it("what would not be unpacked again is not packed", () => {
  expect(() => packText("x".repeat(2 ** 28 + 1))).toThrow(failing("list/too-long", "through the queue"));
  const bomb = gzipSync(Buffer.alloc(2 ** 28 + 1)).toString("base64");
  expect(() => readChunk({ run: "run", index: 0, items: bomb }, "name")).toThrow(
    failing("queue/damaged", "larger than"),
  );
});
