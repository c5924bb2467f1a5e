/** What a pool keeps in Redis: damaged in any place, it is what was written or is refused. */
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import {
  type ChunkItem,
  makeChunk,
  type PoolRun,
  packText,
  readChunk,
  readDone,
  readResult,
  readRun,
  recordsSetAside,
  runRecord,
} from "../../../scorer/pool-records.ts";
import { type FuzzTarget, fuzzTarget, outcomeOf } from "./harness.ts";
import { changedJson, changedJsonText, damaged } from "./mutations.ts";

const RUN: PoolRun = {
  ...{ id: "0123", facts: { version: "1", layer: 2, system: null }, model: "org/a", fingerprint: "f" },
  ...{ weights: "stored", layer: 2, input: "lists.jsonl", lists: 3, chunks: 1 },
  options: {
    ...{ system: null, date: null, pooling: "last", truncate: false, topN: 2, returnDocuments: true },
    ...{ abstainBelow: 0.5, batchTokens: null, sharePrefix: true },
  },
};
const ITEMS: readonly ChunkItem[] = [
  { line: 1, list: '{"id":"a","instruction":"é\\n","candidates":["x",{"text":"y","label":1}]}' },
  { line: 2, record: '{"id":"2","error":{"code":"list/bad-json","message":"m","fix":"f"}}\n' },
  { line: 4, list: '{"messages":[{"role":"user","content":"q"}],"candidates":["x"],"extra":{"a":[1]}}' },
];
const { jobId: NAME, data: DATA } = makeChunk(RUN.id, 5, ITEMS);
const RECORDS = '{"id":"a"}\n{"id":"2"}\n{"id":"4"}\n';
const RESULT = {
  text: packText(RECORDS),
  done: {
    ...{ index: 5, lines: [1, 4], lists: 3, failed: 1, tokens: 30, worker: "w:1", adapter: "a", kernels: "k" },
    seconds: 0.25,
  },
};
const utf8 = new TextDecoder();
const encoder = new TextEncoder();
const KEYS = ["stratum", "id", "facts", "options", "index", "items", "text", "done", "lines", "line", "list", "record"];
/** Packed texts other than the one that belongs there: too large, no text, cut. */
const PACKED = [
  gzipSync(Buffer.alloc(2 ** 28 + 1)).toString("base64"),
  gzipSync(Buffer.from([0xff, 0x0a])).toString("base64"),
  RESULT.text.slice(0, 12),
  packText("\n\n\n"),
  packText(""),
];

function parsedOr(text: string): ChunkItem {
  try {
    return JSON.parse(text) as ChunkItem;
  } catch {
    return { line: 1, list: text };
  }
}

/** Lines of a chunk that is another one, under the name that belongs to it. */
const forged = fc.oneof(
  changedJson([ITEMS], KEYS, ["{}", "[]", '{"candidates":1}', '{"id":{}}']).map(
    (value) => (Array.isArray(value) ? value : [value]) as ChunkItem[],
  ),
  // In the words of a line.
  damaged([encoder.encode(ITEMS.map((item) => JSON.stringify(item)).join("\n"))]).map((bytes) =>
    utf8.decode(bytes).split("\n").map(parsedOr),
  ),
);

export const POOL_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "records of a pool's runs: changed",
    2000,
    ["ok", "queue/damaged"],
    changedJsonText([JSON.parse(runRecord(RUN))], KEYS, ["run 2", "run 1"]),
    (bytes) => outcomeOf(() => void readRun(utf8.decode(bytes), RUN.id)),
  ),
  fuzzTarget(
    "records of a pool's chunks that are done: changed",
    1000,
    ["ok", "queue/damaged"],
    changedJsonText([RESULT.done], KEYS),
    (bytes) => outcomeOf(() => void readDone(utf8.decode(bytes))),
  ),
  fuzzTarget(
    "a pool's chunks: damaged",
    2000,
    ["ok", "queue/damaged"],
    fc.oneof(
      changedJson([DATA], KEYS, PACKED),
      damaged([encoder.encode(DATA.items)]).map((items) => ({ ...DATA, items: utf8.decode(items) })),
    ),
    (data) =>
      outcomeOf(() => {
        const lines = readChunk(data, NAME).map(({ line }) => line);
        if (String(lines) !== "1,2,4") throw new Error(`lines ${lines}`);
      }),
  ),
  fuzzTarget("a pool's chunks: forged", 2000, ["ok", "queue/damaged"], forged, (items) => {
    const { jobId, data } = makeChunk(RUN.id, 5, items);
    return outcomeOf(() => {
      const lines = readChunk(data, jobId);
      const records = recordsSetAside(lines, "why");
      if (records.split("\n").length <= lines.length && lines.every(({ kind }) => kind === "list"))
        throw new Error("records are missing");
    });
  }),
  fuzzTarget(
    "results of a pool's chunks: damaged",
    2000,
    ["ok", "queue/damaged"],
    fc.oneof(
      changedJson([RESULT], KEYS, PACKED),
      damaged([encoder.encode(RESULT.text)]).map((text) => ({ ...RESULT, text: utf8.decode(text) })),
      damaged([encoder.encode(RECORDS)]).map((text) => ({ ...RESULT, text: packText(utf8.decode(text)) })),
    ),
    (value) =>
      outcomeOf(() => {
        const { text, done } = readResult(value, 5);
        if (done.index !== 5 || text.split("\n").length !== done.lists + 1) throw new Error(text);
      }),
  ),
];
