/**
 * A file of rankings that is stopped anywhere and gone on with: without a model, a record a list. A killed process is
 * played by a copy of the folder at that time; a power cut by what a disk may have lost of it.
 */
import {
  appendFileSync,
  cpSync,
  existsSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { sealed } from "../../weights/seal.ts";
import { until } from "../support/cli.ts";
import { failing } from "../support/failing.ts";
import {
  filesOf,
  MACHINE,
  outputOf,
  runFolders,
  Stopped,
  stopAt,
  TEXT,
  type Work,
  work,
} from "../support/rankings-run.ts";

const folders = runFolders();
const { place } = folders;

/** The folder as a killed process leaves it; the journal's next form may be renamed at any time. */
const snapshot = (path: string, copy: string) =>
  cpSync(path, copy, { recursive: true, preserveTimestamps: true, filter: (file) => !file.endsWith(".next") });
const turn = () => new Promise((resolve) => setImmediate(resolve));

let undisturbed: string;
let records: number;
beforeAll(async () => {
  const path = place();
  const { made } = await work(path);
  records = made;
  undisturbed = outputOf(path);
  expect(filesOf(path)).toEqual(["lists.jsonl", "out"]);
  expect(undisturbed.split("\n")).toHaveLength(made + 1);
  expect(undisturbed).toContain("was used on line");
});

describe("a run that is killed", () => {
  it.each([1, 2, 3, 4])("goes on behind its last line and ends in the same bytes (seed %i)", async (seed) => {
    const random = seededRandom(seed);
    let path = place();
    let lines = 0;
    for (let kill = 0; kill < 3; kill++) {
      const copy = `${path}-${kill}`;
      const at = lines + 1 + Math.floor(random() * (records - lines - 1));
      const { began } = await work(path, {
        each: async (made) => {
          if (random() < 0.3) await turn();
          if (random() < 0.02) await new Promise((resolve) => setTimeout(resolve, 5));
          if (made < at) return;
          snapshot(path, copy);
          throw new Stopped();
        },
      });
      expect(began, "lines that were there were not made again").toBe(lines);
      path = copy;
      const partial = join(path, "out.partial");
      const all = existsSync(partial) ? readFileSync(partial, "utf8") : "";
      // A torn line is cut off once there is another to write.
      const text = all.slice(0, all.lastIndexOf("\n") + 1);
      expect(undisturbed.startsWith(text)).toBe(true);
      lines = text.split("\n").length - 1;
      // What a kill in the middle of a write leaves.
      if (lines > 0 && random() < 0.5) appendFileSync(partial, '{"id":"torn');
    }
    expect(lines).toBeGreaterThan(0);
    const { began, made } = await work(path);
    expect([began, began + made]).toEqual([lines, records]);
    expect(outputOf(path)).toBe(undisturbed);
    expect(filesOf(path)).toEqual(["lists.jsonl", "out"]);
  });

  it("when all was done but for the name, gets the name", async () => {
    for (const renamed of [false, true]) {
      const path = place();
      await work(path, { each: stopAt(records) });
      forge(path, { finishing: true });
      if (renamed) renameSync(join(path, "out.partial"), join(path, "out"));
      expect(await work(path)).toMatchObject({ began: records, made: 0 });
      expect(outputOf(path)).toBe(undisturbed);
      expect(filesOf(path)).toEqual(["lists.jsonl", "out"]);
    }
  });
});

/** Changes the last checkpoint's state, with the hash that belongs to it. */
function forge(path: string, changes: object): void {
  const journal = join(path, "out.journal");
  const { check: _, ...head } = JSON.parse(readFileSync(journal, "utf8").split("\n")[0]!) as {
    check: string;
    state: object;
  };
  writeFileSync(journal, `${sealed({ ...head, state: { ...head.state, ...changes } })}\n`);
}

describe("a journal that is not as it was written", () => {
  const refused = async (path: string, code: string) =>
    expect(work(path)).rejects.toThrow(expect.objectContaining({ code }));

  it("is refused where a digit has changed, though it reads as one", async () => {
    const path = place();
    await work(path, { each: stopAt(100) });
    const journal = join(path, "out.journal");
    const text = readFileSync(journal, "utf8");
    for (const field of ["out", "bytes", "items", "line"]) {
      writeFileSync(
        journal,
        text.replace(new RegExp(`"${field}":(\\d+)`), (_, n) => `"${field}":${Number(n) - 1}`),
      );
      await refused(path, "usage/bad-journal");
    }
    writeFileSync(journal, text);
    await work(path);
    expect(outputOf(path)).toBe(undisturbed);
  });

  it("and is another command's, is refused as such", async () => {
    const path = place();
    await work(path, { each: stopAt(100) });
    forge(path, { parts: [], out: "elsewhere" });
    const other = work(path, { run: { layer: 1, command: "extract" } });
    await expect(other).rejects.toThrow(failing("usage/other-run", 'command was absent, is "extract"'));
    await refused(path, "usage/bad-journal");
  });

  it("is refused where it says what cannot be", async () => {
    for (const [changes, code] of [
      // Past the input: the rest of it would be taken for done.
      [{ position: { line: 10, bytes: 5, items: 1, hash: "" } }, "usage/bad-journal"],
      [{ position: { line: 2 ** 50, bytes: 2 ** 51, items: 2 ** 49, hash: "" } }, "usage/bad-journal"],
      // Within a line.
      [{ out: 3 }, "usage/output-changed"],
      [{ base: 2 ** 40 }, "usage/output-changed"],
      // All is done, and there is no output.
      [{ finishing: true, out: 7 }, "usage/output-changed"],
    ] as const) {
      const path = place();
      await work(path, { each: stopAt(100) });
      forge(path, changes);
      if ("finishing" in changes) renameSync(join(path, "out.partial"), join(path, "elsewhere"));
      await refused(path, code);
    }
  });
});

describe("a power cut", () => {
  /** A run that stopped after some chunks that no checkpoint followed. */
  async function chunks(): Promise<{ path: string; ends: number[] }> {
    const path = place();
    const copy = `${path}-cut`;
    await work(path, {
      each: async (made) => {
        if (made % 20 === 0) await turn();
        // The first chunk waits for the journal's beginning.
        if (made === 20) await until(() => existsSync(join(path, "out.partial")) || undefined, "the first chunk");
        if (made < 200) return;
        await turn();
        snapshot(path, copy);
        throw new Stopped();
      },
    });
    const lines = readFileSync(join(copy, "out.journal"), "utf8").trimEnd().split("\n");
    const ends = lines.map((line) => (JSON.parse(line) as { state: { out: number } }).state.out);
    expect(ends.length).toBeGreaterThan(3);
    return { path: copy, ends };
  }

  it.each([
    [
      "lost the end of the lines",
      (path: string, ends: number[]) => truncateSync(join(path, "out.partial"), ends.at(-2)! + 1),
    ],
    [
      "kept zeros in their place",
      (path: string, ends: number[]) => {
        const bytes = readFileSync(join(path, "out.partial"));
        bytes.fill(0, ends.at(-2)! + 3, ends.at(-2)! + 9);
        writeFileSync(join(path, "out.partial"), bytes);
      },
    ],
    [
      "lost the last ids",
      (path: string) => {
        const ids = join(path, "out.journal.ids");
        truncateSync(ids, statSync(ids).size - 8);
      },
    ],
    [
      "tore the journal's last line",
      (path: string) => {
        const journal = join(path, "out.journal");
        truncateSync(journal, statSync(journal).size - 9);
      },
    ],
  ])("that %s costs the last chunk", async (_, damage) => {
    const { path, ends } = await chunks();
    const whole = readFileSync(join(path, "out.partial"), "utf8").slice(0, ends.at(-2));
    damage(path, ends);
    const { began } = await work(path);
    expect(began).toBe(
      Buffer.from(readFileSync(join(path, "out")))
        .subarray(0, ends.at(-2))
        .toString()
        .split("\n").length - 1,
    );
    expect(undisturbed.startsWith(whole)).toBe(true);
    expect(outputOf(path)).toBe(undisturbed);
  });

  it("that took what was synced is told", async () => {
    const path = place();
    await work(path, { each: stopAt(100) });
    truncateSync(join(path, "out.partial"), 10);
    await expect(work(path)).rejects.toThrow(expect.objectContaining({ code: "usage/output-changed" }));
    writeFileSync(join(path, "out.journal"), "{}\n");
    await expect(work(path)).rejects.toThrow(expect.objectContaining({ code: "usage/bad-journal" }));
    await work(path, { restart: true });
    expect(outputOf(path)).toBe(undisturbed);
  });
});

it.each([
  ["its file", (copy: string) => renameSync(join(copy, "out.partial"), join(copy, "out"))],
  [
    "its file, and its ids were gone",
    (copy: string) => {
      renameSync(join(copy, "out.partial"), join(copy, "out"));
      rmSync(join(copy, "out.journal.ids"));
    },
  ],
  ["nothing yet", () => undefined],
])("a run that was killed when %s had its name is done", async (_, name) => {
  const path = place();
  const copy = `${path}.copy`;
  await work(path, { last: async () => snapshot(path, copy) });
  name(copy);
  expect(await work(copy)).toMatchObject({ made: 0 });
  expect([outputOf(copy), filesOf(copy)]).toEqual([undisturbed, ["lists.jsonl", "out"]]);
});

describe("another run", () => {
  it.each([
    ["another option", { run: { layer: 2 } }, /layer was 1, is 2/],
    ["an option more", { run: { layer: 1, system: "Be brief." } }, /system was absent, is "Be brief\."/],
    ["other kernels", { machine: { ...MACHINE, kernels: "l" } }, /kernels was "k", is "l"/],
    ["another adapter", { machine: { ...MACHINE, adapter: "b" } }, /adapter was "a", is "b"/],
  ])("with %s is refused, and harms nothing", async (_, more: Work, message) => {
    const path = place();
    await work(path, { each: stopAt(100) });
    await expect(work(path, more)).rejects.toThrow(message);
    await work(path);
    expect(outputOf(path)).toBe(undisturbed);
  });

  it("that has taken the output is noticed", async () => {
    let mine = true;
    const path = place();
    const begun = work(path, {
      held: async () => mine,
      each: async () => {
        mine = false;
        await new Promise((resolve) => setTimeout(resolve, 10));
      },
    });
    await expect(begun).rejects.toThrow(expect.objectContaining({ code: "usage/in-use" }));
  });
});

describe("the input", () => {
  const input = (path: string) => join(path, "lists.jsonl");

  it("is not read again where the system says that nothing changed", async () => {
    const path = place();
    await work(path, { each: stopAt(100) });
    expect(await work(path)).toMatchObject({ began: 100, verify: false });
  });

  it.each([
    ["touched", (path: string) => utimesSync(input(path), 1, 1)],
    ["copied", (path: string) => cpSync(input(path), `${input(path)}.copy`)],
    ["longer", (path: string) => appendFileSync(input(path), '\n{"instruction": "new", "candidates": ["a"]}')],
  ])("%s since is compared, and gone on with", async (_, change) => {
    const path = place();
    await work(path, { each: stopAt(100) });
    change(path);
    if (existsSync(`${input(path)}.copy`)) renameSync(`${input(path)}.copy`, input(path));
    expect(await work(path)).toMatchObject({ began: 100, verify: true });
    expect(outputOf(path).startsWith(undisturbed)).toBe(true);
  });

  it.each([
    ["a byte that was read", (text: string) => text.replace('q1"', 'Q1"')],
    ["a line more", (text: string) => `\n${text}`],
    ["less than was read", (text: string) => text.slice(0, 200)],
    ["nothing", () => ""],
  ])("with other bytes is refused: %s", async (_, change) => {
    const path = place();
    await work(path, { each: stopAt(100) });
    writeFileSync(input(path), change(TEXT));
    await expect(work(path)).rejects.toThrow(expect.objectContaining({ code: "usage/other-input" }));
    expect(filesOf(path)).toContain("out.partial");
  });
});
