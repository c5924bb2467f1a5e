import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { StratumError } from "../../errors.ts";
import { seededRandom } from "../../kernels/random.ts";
import { findJsonFault } from "../../weights/json.ts";
import { openSafetensors } from "../../weights/safetensors.ts";
import { parseSafetensorsHeader, type SafetensorsHeader, tensorBytes } from "../../weights/safetensors-header.ts";
import { failing } from "../support/failing.ts";
import { encode, entry, fileOf, TWO } from "../support/safetensors-file.ts";

function parse(header: string | Uint8Array, bodyBytes: number): SafetensorsHeader {
  const bytes = typeof header === "string" ? encode(header) : header;
  return parseSafetensorsHeader(bytes, 8 + bytes.length + bodyBytes, "m.safetensors");
}

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "stratum-safetensors-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function saved(bytes: Uint8Array, name = "m.safetensors"): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}

it("counts what a header would take in memory before it is parsed", () => {
  const header = `{"a":[${"{},".repeat(5_000_000)}{}]}`;
  expect(() => parse(header, 0)).toThrow(failing("safetensors/header-too-large", "more values"));
});

describe("valid headers", () => {
  it("orders tensors by their place in the file, whatever the header's order", () => {
    const { tensors } = parse(`{"z":${entry("U8", "[2]", 4, 6)},"y":${entry("U8", "[4]", 0, 4)}}`, 6);
    expect([...tensors.keys()]).toEqual(["y", "z"]);
    const empty = `{"full":${entry("U8", "[2]", 0, 2)},"empty":${entry("U8", "[0]", 0, 0)}}`;
    expect([...parse(empty, 2).tensors.keys()]).toEqual(["empty", "full"]);
  });

  it("takes empty files, scalars, empty tensors and padding", () => {
    expect(parse("{}", 0).tensors.size).toBe(0);
    expect(parse("{}      ", 0).tensors.size).toBe(0);
    expect(parse(`{"s":${entry("F64", "[]", 0, 8)}}`, 8).tensors.get("s")?.shape).toEqual([]);
    const empty = `{"a":${entry("F32", "[0,7]", 0, 0)},"b":${entry("U8", "[2]", 0, 2)},"c":${entry("I8", "[3,0]", 2, 2)}}`;
    expect([...parse(empty, 2).tensors.values()].map((tensor) => tensor.byteLength)).toEqual([0, 2, 0]);
  });

  it("knows the newer dtypes by their size", () => {
    expect(parse(`{"q":${entry("F8_E4M3", "[3]", 0, 3)}}`, 3).tensors.get("q")?.dtype).toBe("F8_E4M3");
    expect(parse(`{"q":${entry("F4", "[4]", 0, 2)}}`, 2).tensors.get("q")?.byteLength).toBe(2);
    expect(tensorBytes("F4", [3])).toBeNull();
    expect(tensorBytes("F64", [2 ** 30, 2 ** 30])).toBeNull();
    expect(tensorBytes("F64", [2 ** 30, 2 ** 30, 0])).toBe(0);
  });

  it("treats names of JavaScript's own as names", () => {
    const header = `{"__proto__":${entry("U8", "[1]", 0, 1)},"constructor":${entry("U8", "[1]", 1, 2)},"__metadata__":{"__proto__":"x"}}`;
    const { tensors, metadata } = parse(header, 2);
    expect([...tensors.keys()]).toEqual(["__proto__", "constructor"]);
    expect(Object.entries(metadata)).toEqual([["__proto__", "x"]]);
    expect(Object.getPrototypeOf(metadata)).toBeNull();
    expect(Object.getPrototypeOf(parse("{}", 0).metadata)).toBeNull();
    expect(parse("{}", 0).tensors.get("toString")).toBeUndefined();
    expect(() => parse(`{"a":{"__proto__":${entry("U8", "[1]", 0, 1)}}}`, 1)).toThrow(
      failing("safetensors/header-schema", '"dtype"'),
    );
  });
});

describe("headers at fault", () => {
  const cases: [string, string, string | Uint8Array, number, string][] = [
    ["not UTF-8", "header-utf8", Uint8Array.of(0x7b, 0xff, 0x7d), 0, "UTF-8"],
    ["not JSON", "header-json", '{"a":', 0, "JSON"],
    ["padding in front", "header-json", " {}", 0, "begin"],
    ["a byte order mark", "header-json", "\ufeff{}", 0, "begin"],
    ["text after the object", "header-json", "{} {}", 0, "JSON"],
    ["an array", "header-json", "[]", 0, "begin"],
    ["nesting", "header-nesting", `{"a":${"[".repeat(100_000)}`, 0, "16 levels"],
    ["nesting, closed", "header-nesting", `{"a":${"[".repeat(20)}${"]".repeat(20)}}`, 0, "16 levels"],
    ["an entry that is no object", "header-schema", '{"a":[1]}', 0, '"a"'],
    ["an entry that is null", "header-schema", '{"a":null}', 0, '"a"'],
    ["no dtype", "header-schema", '{"a":{"shape":[],"data_offsets":[0,1]}}', 1, '"dtype"'],
    ["no shape", "header-schema", '{"a":{"dtype":"U8","data_offsets":[0,1]}}', 1, '"shape"'],
    ["no data_offsets", "header-schema", '{"a":{"dtype":"U8","shape":[1]}}', 1, '"data_offsets"'],
    ["metadata that is no object", "header-schema", '{"__metadata__":"pt"}', 0, "__metadata__"],
    ["metadata that is no string", "header-schema", '{"__metadata__":{"n":1}}', 0, '"n" is 1'],
    ["an unknown dtype", "unknown-dtype", `{"a":${entry("F12", "[1]", 0, 2)}}`, 2, "F12"],
    ["a dtype of JavaScript's own", "unknown-dtype", `{"a":${entry("toString", "[1]", 0, 2)}}`, 2, "toString"],
    ["a dtype that is no string", "unknown-dtype", '{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}', 1, "dtype 8"],
    ["a negative size", "bad-shape", `{"a":${entry("U8", "[-1]", 0, 1)}}`, 1, "-1"],
    ["a fractional size", "bad-shape", `{"a":${entry("U8", "[0.5]", 0, 1)}}`, 1, "0.5"],
    ["a size beyond 2^53", "bad-shape", `{"a":${entry("U8", "[9007199254740993]", 0, 1)}}`, 1, '"a"'],
    ["a size in quotes", "bad-shape", `{"a":${entry("U8", '["1"]', 0, 1)}}`, 1, '"a"'],
    ["a shape that is no list", "bad-shape", `{"a":${entry("U8", "1", 0, 1)}}`, 1, '"a"'],
    [
      "a shape whose product overflows",
      "shape-overflow",
      `{"a":${entry("F32", "[4194304,4194304,4194304]", 0, 4)}}`,
      4,
      '"a"',
    ],
    ["half a byte", "shape-overflow", `{"a":${entry("F4", "[3]", 0, 2)}}`, 2, "F4"],
    ["offsets backwards", "bad-offsets", `{"a":${entry("U8", "[1]", 2, 1)}}`, 2, "2,1"],
    ["offsets below zero", "bad-offsets", `{"a":${entry("U8", "[1]", -1, 0)}}`, 1, "-1"],
    ["three offsets", "bad-offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}', 1, "0,1,1"],
    ["one offset", "bad-offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}}', 1, '"a"'],
    ["offsets as an object", "bad-offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":{}}}', 1, '"a"'],
    ["offsets that are no integers", "bad-offsets", `{"a":${entry("U8", "[1]", 0, 1.5)}}`, 2, "1.5"],
    ["dtype x shape is not the bytes", "size-mismatch", `{"a":${entry("F32", "[2,2]", 0, 15)}}`, 15, "16 bytes"],
    ["a hole at the start", "hole", `{"a":${entry("U8", "[1]", 1, 2)}}`, 2, "1 unused bytes after the header"],
    ["a hole between", "hole", `{"a":${entry("U8", "[1]", 0, 1)},"b":${entry("U8", "[1]", 3, 4)}}`, 4, "2 unused"],
    ["an overlap", "overlap", `{"a":${entry("U8", "[4]", 0, 4)},"b":${entry("U8", "[4]", 3, 7)}}`, 7, '"b".*"a"'],
    [
      "the same place twice",
      "overlap",
      `{"a":${entry("U8", "[2]", 0, 2)},"b":${entry("U8", "[2]", 0, 2)}}`,
      2,
      "overlaps",
    ],
    [
      "an empty tensor within another",
      "overlap",
      `{"a":${entry("U8", "[4]", 0, 4)},"b":${entry("U8", "[0]", 2, 2)}}`,
      4,
      '"b"',
    ],
    ["a tensor outside the file", "offsets-outside", `{"a":${entry("U8", "[1]", 1e6, 1e6 + 1)}}`, 8, "8 bytes"],
    ["a truncated body", "truncated", TWO, 20, "2 bytes are missing"],
    ["no body at all", "truncated", TWO, 0, "22 bytes are missing"],
    ["bytes after the last tensor", "trailing-bytes", TWO, 25, "3 bytes"],
    ["bytes without any tensor", "trailing-bytes", "{}", 1, "1 bytes"],
  ];
  it.each(cases)("%s is safetensors/%s", (_what, code, header, bodyBytes, text) => {
    expect(() => parse(header, bodyBytes)).toThrow(failing(`safetensors/${code}`, "m.safetensors", text));
  });

  const one = entry("U8", "[1]", 0, 1);
  const duplicates: [string, string][] = [
    ["a name twice", `{"a":${one},"a":${one}}`],
    ["a name escaped", `{"a":${one},"\\u0061":${one}}`],
    ["both escaped", `{"\\u00e9\\n":${one},"é\\u000a":${one}}`],
    ["spaces before the colon", `{"a" :${one},"a"\t\n: ${one}}`],
    ["quotes and backslashes in the name", `{"\\\\\\"":${one},"\\u005c\\u0022":${one}}`],
    ["a key within an entry", '{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}'],
    ["an escaped key within an entry", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"sh\\u0061pe":[1]}}'],
    ["two __metadata__", '{"__metadata__":{},"__metadata__":{}}'],
    ["a metadata key", '{"__metadata__":{"k":"1","k":"2"}}'],
    ["__proto__", `{"__proto__":${one},"__proto__":${one}}`],
  ];
  it.each(duplicates)("%s twice is refused", (_what, header) => {
    expect(() => parse(header, 1)).toThrow(failing("safetensors/duplicate-key", "twice"));
  });

  it("does not mistake values, or keys of other objects, for duplicates", () => {
    const header = `{"__metadata__":{"a":"a","b":"a","c":"{\\"a\\":1,\\"a\\":2}"},"a":${one},"b":${entry("U8", "[1]", 1, 2)}}`;
    expect(parse(header, 2).tensors.size).toBe(2);
  });

  it("cuts long names in messages", () => {
    const name = "n".repeat(100_000);
    expect(() => parse(`{"${name}":null}`, 0)).toThrow(expect.objectContaining({ code: "safetensors/header-schema" }));
    try {
      parse(`{"${name}":null}`, 0);
    } catch (error) {
      expect((error as Error).message.length).toBeLessThan(500);
    }
  });
});

/** A seeded generator of integers below a bound. */
function dice(seed: number): (below: number) => number {
  const random = seededRandom(seed);
  return (below) => (random() * 2 ** 32) % below;
}

const SEEDS = [
  TWO,
  `{"__metadata__":{"format":"pt"},"w":${entry("F16", "[2,3]", 0, 12)},"\\u0062":${entry("I64", "[1]", 12, 20)},"e":${entry("U8", "[0]", 20, 20)}}  `,
];
const PIECES = [
  '"a":',
  '"w":',
  "[",
  "]",
  "{",
  "}",
  ",",
  '"',
  "\\",
  "\\u0061",
  "0",
  "9",
  "-",
  "1e3",
  "null",
  "[0,0]",
  "é",
].map(encode);

const VALUES = [
  "0",
  "1",
  "4",
  "16",
  "22",
  "-1",
  "0.5",
  "1e3",
  "9007199254740993",
  "null",
  "[]",
  "{}",
  '"U8"',
  '"F4"',
  '"a"',
];

/** Another value for a number or a string, a tensor elsewhere, or one to three edits of bytes. */
function mutate(bytes: Uint8Array, roll: (below: number) => number): Uint8Array {
  if (roll(8) === 0) return shiftTensor(bytes, roll);
  const found = [...new TextDecoder("latin1").decode(bytes).matchAll(/\d+|"[^"]*"/g)];
  const token = found[roll(found.length + 1)];
  let edited = [...bytes];
  if (token && roll(2) === 0) edited.splice(token.index, token[0].length, ...encode(VALUES[roll(VALUES.length)]!));
  else for (let edits = 1 + roll(3); edits > 0; edits--) edited = mutateBytes(edited, roll);
  return Uint8Array.from(edited);
}

function shiftTensor(bytes: Uint8Array, roll: (below: number) => number): Uint8Array {
  const by = roll(3) === 0 ? roll(1000) : roll(5);
  const [chosen, sign] = [roll(3), roll(2) === 0 ? 1 : -1];
  let seen = 0;
  const text = new TextDecoder("latin1").decode(bytes).replace(/\[(\d+),(\d+)\]\}/g, (pair, start, end) => {
    return seen++ === chosen ? `[${Number(start) + sign * by},${Number(end) + sign * by}]}` : pair;
  });
  return Uint8Array.from(text, (char) => char.charCodeAt(0));
}

function mutateBytes(bytes: number[], roll: (below: number) => number): number[] {
  const at = roll(bytes.length + 1);
  const edit = roll(6);
  if (edit === 0) return bytes.with(Math.min(at, bytes.length - 1), roll(256));
  if (edit === 1) return bytes.toSpliced(at, roll(6));
  if (edit === 2) return bytes.toSpliced(at, 0, ...PIECES[roll(PIECES.length)]!);
  if (edit === 3) return bytes.toSpliced(at, 1, 0x30 + roll(10));
  if (edit === 4) return bytes.toSpliced(at, 0, ...bytes.slice(roll(bytes.length), roll(bytes.length)));
  return at === 0 ? [0x7b] : bytes.slice(0, at);
}

/** That an accepted header really tiles its file. */
function checkAccepted({ tensors }: SafetensorsHeader, headerBytes: number, bodyBytes: number): void {
  let cursor = 8 + headerBytes;
  for (const [name, tensor] of tensors) {
    expect([tensor.name, tensor.fileOffset]).toEqual([name, cursor]);
    expect(tensorBytes(tensor.dtype, tensor.shape)).toBe(tensor.byteLength);
    cursor += tensor.byteLength;
  }
  expect(cursor).toBe(8 + headerBytes + bodyBytes);
}

const CODES = [
  "valid",
  ..."header-utf8 header-json header-schema duplicate-key unknown-dtype bad-shape shape-overflow bad-offsets size-mismatch"
    .concat(" overlap hole offsets-outside truncated trailing-bytes")
    .split(" ")
    .map((what) => `safetensors/${what}`),
];

describe("mutated headers", () => {
  it("20,000 of them open as valid files or fail with a safetensors code, and with nothing else", () => {
    const roll = dice(20240);
    const seen = new Map<string, number>();
    for (let i = 0; i < 20_000; i++) {
      const header = mutate(encode(SEEDS[i % SEEDS.length]!), roll);
      const bodyBytes = roll(10) === 0 ? roll(30) : [22, 20][i % 2]!;
      let outcome = "valid";
      try {
        checkAccepted(parse(header, bodyBytes), header.length, bodyBytes);
      } catch (error) {
        if (!(error instanceof StratumError) || !error.code.startsWith("safetensors/")) {
          throw new Error(`header ${i}: ${JSON.stringify(new TextDecoder().decode(header))}`, { cause: error });
        }
        outcome = error.code;
      }
      seen.set(outcome, (seen.get(outcome) ?? 0) + 1);
    }
    // The edits must reach past the JSON: otherwise the loop above proves little.
    for (const outcome of CODES) {
      expect(seen.get(outcome), outcome).toBeGreaterThan(10);
    }
  });

  it("so do 500 whole files, with their length and body mutated too", async () => {
    const roll = dice(7);
    for (let i = 0; i < 500; i++) {
      let file = fileOf(SEEDS[i % 2]!, [22, 20][i % 2]!);
      if (roll(3) === 0) file = mutate(file, roll);
      else if (roll(2) === 0) file = file.slice(0, roll(file.length));
      else file[roll(10)] = roll(256);
      const path = await saved(file, "fuzz.safetensors");
      try {
        await using opened = await openSafetensors(path);
        for (const name of opened.tensors.keys()) await opened.read(name);
        expect(opened.log.bytes + opened.log.headerBytes).toBe(file.length);
      } catch (error) {
        if (!(error instanceof StratumError) || !error.code.startsWith("safetensors/")) throw error;
      }
    }
  });

  it("finds every duplicate that was planted in random JSON, and none where there is none", () => {
    const roll = dice(99);
    const escaped = (text: string) =>
      [...text].map((c) =>
        roll(2) === 0 ? `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}` : JSON.stringify(c).slice(1, -1),
      );
    const space = () => [" ", "\n", "\t", ""][roll(4)];
    let planted = false;
    const value = (depth: number): string => {
      const kind = depth > 4 ? 0 : roll(3);
      if (kind === 0) return ['"a"', '"\\"a\\":"', "1", "null", '"{"', '"]"'][roll(6)]!;
      if (kind === 1) return `[${Array.from({ length: roll(4) }, () => value(depth + 1)).join(",")}]`;
      const keys = ["a", "b\\", '"', "ü:", "{"].slice(0, roll(6));
      const again = keys[0];
      if (again !== undefined && !planted && roll(12) === 0) {
        keys.push(again);
        planted = true;
      }
      return `{${keys.map((key) => `"${escaped(key).join("")}"${space()}:${space()}${value(depth + 1)}`).join(`${space()},`)}}`;
    };
    let withDuplicate = 0;
    for (let i = 0; i < 3000; i++) {
      planted = false;
      const text = value(0);
      JSON.parse(text);
      if (planted) withDuplicate++;
      expect([text, findJsonFault(text, 16)?.type]).toEqual([text, planted ? "duplicate" : undefined]);
    }
    expect(withDuplicate).toBeGreaterThan(200);
  });

  it("takes time in proportion to a hostile text's length", () => {
    const started = performance.now();
    findJsonFault(`{"${'\\"'.repeat(1_000_000)}":1}`, 16);
    findJsonFault(`{"${"\\".repeat(2_000_000)}":1}`, 16);
    findJsonFault(`{${'"a'.repeat(1_000_000)}`, 16);
    expect(performance.now() - started).toBeLessThan(2000);
  });
});
