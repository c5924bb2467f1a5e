/** Rows of files in every format, and what of a broken file is told. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openRows, type RowItem, type RowOptions, rowFormatOf } from "../../scorer/rows.ts";
import { openParquet } from "../../scorer/rows-parquet.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { failing } from "../support/failing.ts";

const golden = (name: string) => fileURLToPath(new URL(`../golden/import/${name}`, import.meta.url));

let folder: Folder;
beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder[Symbol.asyncDispose]());

async function read(path: string, options: RowOptions = {}, columns?: readonly string[]) {
  const source = await openRows(path, options);
  const items: RowItem[] = [];
  for await (const item of source.rows(columns ?? source.names)) items.push(item);
  return { source, items, fields: items.flatMap(({ fields }) => (fields === undefined ? [] : [fields])) };
}
const rows = async (name: string, content: string | Uint8Array, options?: RowOptions) =>
  read(await folder.write(name, content), options);
const errors = (items: readonly RowItem[]) =>
  items.flatMap(({ place, error }) => (error === undefined ? [] : [`${place} ${error.code}`]));

describe("JSON", () => {
  it("lines, gzipped or not, with errors in their places", async () => {
    const text = '\ufeff{"a": 1}\n\nnope\n{"b": [2]}\n[3]';
    for (const [name, content] of [
      ["rows.jsonl", text],
      ["rows.jsonl.gz", gzipSync(text)],
      ["zipped-all-the-same.ndjson", gzipSync(text)],
    ] as const) {
      const { items, fields, source } = await rows(name, content);
      expect(fields).toEqual([{ a: 1 }, { b: [2] }]);
      expect(errors(items)).toEqual(["line 3 list/bad-json", "line 5 list/bad-shape"]);
      expect([source.format, source.names]).toEqual(["jsonl", ["a"]]);
    }
    await expect(rows("cut.jsonl.gz", gzipSync(`${text}${"{}\n".repeat(9)}`).subarray(0, 40))).rejects.toThrowError(
      failing("file/unreadable"),
    );
  });

  it("an array", async () => {
    const { items, fields } = await rows("rows.json", '[{"a": 1}, 2]');
    expect(fields).toEqual([{ a: 1 }]);
    expect(errors(items)).toEqual(["row 2 list/bad-row"]);
    for (const text of ["{}", '{"a": 1}\n{"a": 2}', "[", ""])
      await expect(rows("bad.json", text), text).rejects.toThrowError(failing("list/bad-json"));
  });

  it("refuses a file of another kind, or an empty one", async () => {
    await expect(rows("words.jsonl", "words\n".repeat(300))).rejects.toThrowError(/none of the first 100 rows/);
    for (const name of ["empty.jsonl", "empty.csv"])
      await expect(rows(name, "\n"), name).rejects.toThrowError(failing("list/empty-file"));
    await expect(read(folder.path, { format: "jsonl" })).rejects.toThrowError(failing("usage/no-input"));
    await expect(read(`${folder.path}/none.csv`)).rejects.toThrowError(failing("usage/no-input"));
    expect(() => rowFormatOf("rows.txt")).toThrowError(failing("usage/format"));
    expect(["-", "A.CSV", "x.tsv.gz", "y.parquet"].map(rowFormatOf)).toEqual(["jsonl", "csv", "tsv", "parquet"]);
  });
});

describe("CSV", () => {
  it("quotes, line breaks, blank lines, CRLF and a byte order mark; places are lines", async () => {
    const text = '\ufeffq , a\r\n"x, ""y""","two\r\nlines"\r\n\r\nshort\r\nz,é\r\n';
    const { items, fields } = await rows("rows.csv", text);
    expect(fields).toEqual([
      { q: 'x, "y"', a: "two\r\nlines" },
      { q: "z", a: "é" },
    ]);
    expect(items.map(({ place }) => place)).toEqual(["line 2", "line 5", "line 6"]);
    expect(errors(items)).toEqual(["line 5 list/bad-row"]);
    expect((await rows("rows.tsv", "q\ta\n1,5\t2")).fields).toEqual([{ q: "1,5", a: "2" }]);
    expect((await rows("semi.csv", "q;a\n1,5;2", { delimiter: ";" })).fields).toEqual([{ q: "1,5", a: "2" }]);
  });

  it("refuses what cannot be aligned", async () => {
    await expect(rows("quote.csv", 'q,a\nx,y\nx,"y\nz,w\n')).rejects.toThrowError(/begins on line 3/);
    await expect(rows("twice.csv", "q,q\n1,2")).rejects.toThrowError(failing("list/bad-csv"));
    await expect(rows("latin.csv", Buffer.from("q,a\nx,caf\u00e9\n", "latin1"))).rejects.toThrowError(
      failing("list/bad-utf8"),
    );
  });

  it("a character cut by a chunk is one", async () => {
    const text = `q,a\n${"é☀".repeat(3000)},x\n`;
    expect((await rows("long.csv", text)).fields[0]).toEqual({ q: "é☀".repeat(3000), a: "x" });
  });
});

describe("Parquet, as DuckDB writes it", () => {
  it.each(["snappy", "zstd", "gzip", "uncompressed"])("%s: texts, lists of structs, numbers", async (codec) => {
    const { source, fields } = await read(golden(`pairs-${codec}.parquet`));
    expect([source.total, source.names]).toEqual([2, ["prompt", "chosen", "rejected", "score_chosen", "n"]]);
    expect(fields[1]).toEqual({
      prompt: "Why is the sky blue? ☀",
      chosen: [
        { role: "user", content: "Why is the sky blue? ☀" },
        { role: "assistant", content: "Short waves scatter most." },
      ],
      rejected: [
        { role: "user", content: "Why is the sky blue? ☀" },
        { role: "assistant", content: "It mirrors the sea." },
      ],
      ...{ score_chosen: null, n: 8 },
    });
    expect(Number(fields[0]["score_chosen"])).toBe(9.5);
  });

  it("several row groups, in order, of the asked-for columns alone", async () => {
    const { source, items } = await read(golden("safe-zstd.parquet"), {}, ["prompt", "is_response_0_safe"]);
    expect([source.total, items.length]).toEqual([6000, 6000]);
    for (const [i, { place, fields }] of items.entries()) {
      expect(place).toBe(`row ${i + 1}`);
      expect(fields).toEqual({ prompt: `question ${Math.floor(i / 2)}`, is_response_0_safe: i % 3 === 0 });
    }
  });

  it("refuses what is none, or is cut or damaged", async () => {
    await expect(rows("text.parquet", "nothing of the kind")).rejects.toThrowError(failing("list/bad-parquet"));
    await expect(rows("tiny.parquet", "PAR1")).rejects.toThrowError(failing("list/bad-parquet"));
    const whole = await readFile(golden("pairs-snappy.parquet"));
    await expect(rows("cut.parquet", whole.subarray(0, 900))).rejects.toThrowError(failing("list/bad-parquet"));
    await expect(rows("headless.parquet", whole.subarray(300))).rejects.toThrowError(failing("list/bad-parquet"));
  });

  it("a length that would end the process that reads it ends another one", async () => {
    const bytes = await readFile(golden("pairs-snappy.parquet"));
    // A run of so many values that V8 gives up: "Fatal JavaScript invalid size error".
    bytes.set([0xfe, 0xff, 0xff, 0xff], 30);
    const path = await folder.write("run.parquet", bytes);
    for (const [limits, why] of [
      [{ ms: 60_000, bytes: 2 ** 28 }, /takes more memory than a file of its size should/],
      [{ ms: 1, bytes: 2 ** 28 }, /was not read within 1 s/],
    ] as const) {
      const reading = (async () => {
        const { names, rows } = await openParquet(path, limits);
        for await (const row of rows(names)) expect.unreachable(JSON.stringify(row));
      })();
      await expect(reading, String(why)).rejects.toThrowError(
        expect.objectContaining({ code: "list/bad-parquet", message: expect.stringMatching(why) }),
      );
    }
    // The next file has a process again.
    expect((await read(golden("pairs-snappy.parquet"))).items).toHaveLength(2);
  });

  it("rows that nobody reads to their end hold nothing up", async () => {
    const sources = await Promise.all([1, 2].map(() => openRows(golden("safe-zstd.parquet"))));
    for (const { rows, names } of sources)
      for await (const { place } of rows(names)) {
        expect(place).toBe("row 1");
        break;
      }
    expect((await read(golden("safe-zstd.parquet"), {}, ["prompt"])).items).toHaveLength(6000);
  });
});
