/** Files of hidden states: one safetensors file, or numbered parts with an index, and a line a sequence beside it. */
import { rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, normalize } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { isJsonObject, readJsonFile } from "../weights/json.ts";
import { createSafetensorsWriter, type SafetensorsWriter } from "../weights/safetensors-writer.ts";
import type { ExtractedSequence } from "./extract.ts";

export interface StatesWriterOptions {
  /** Becomes `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly layers: number;
  readonly tokens: "last" | "all";
  /** Hidden size D. */
  readonly d: number;
  /** Bytes of states after which another part begins. */
  readonly partBytes: number;
}

/** Writes `ids_i` (T) I32 and `hidden_i` F32 for i = 0, 1, ... */
export interface StatesWriter {
  /** @returns the sequence's number i @throws {StratumError} `file/write-failed` */
  add(sequence: ExtractedSequence): Promise<number>;
  /** Gives the files their names. @returns the paths written */
  finish(): Promise<readonly string[]>;
  /** The work ended early: what there is stays, whole, under names that end in `.partial`. @returns the paths */
  leave(): Promise<readonly string[]>;
  /** Removes what was written and not finished. */
  abort(): Promise<void>;
}

/** A header lives in memory until its part is finished: a part ends before it grows past this. */
const PART_HEADER_BYTES = 32 * 1024 * 1024;

const EARLIER_INDEX = {
  what: "an earlier run's index",
  maxBytes: 2 ** 29,
  missing: "file/missing",
  bad: "file/bad-json",
  fix: "remove it",
} as const;

/** `states-00002.safetensors` for part 2 of `states.safetensors`. */
function partPath(path: string, part: number): string {
  const name = basename(path);
  const dot = name.endsWith(".safetensors") ? name.length - ".safetensors".length : name.length;
  return join(dirname(path), `${name.slice(0, dot)}-${String(part).padStart(5, "0")}${name.slice(dot)}`);
}

/** @throws {StratumError} `file/write-failed`, `file/not-a-file` */
export async function createStatesWriter(file: string, options: StatesWriterOptions): Promise<StatesWriter> {
  const { layers, tokens, d, metadata, partBytes } = options;
  const path = normalize(file);
  const found = await stat(path).catch(() => undefined);
  if (found !== undefined && !found.isFile()) {
    throw new StratumError("file/not-a-file", `${path} is not a regular file`, "give -o the name of a file");
  }
  // Until there is a second part, the first is the file itself.
  let writer: SafetensorsWriter = await createSafetensorsWriter(path, { metadata });
  const parts: { path: string; sequences: number; bytes: number }[] = [];
  let sequences = 0;
  let inPart = 0;

  async function endPart(): Promise<void> {
    const target = partPath(path, parts.length + 1);
    const bytes = writer.bodyBytes;
    await writer.finish(true);
    await guarded(() => rename(`${path}.partial`, `${target}.partial`));
    parts.push({ path: target, sequences: inPart, bytes });
    inPart = 0;
  }

  /** The parts that an earlier run's index names; whatever it says, other files of the folder are none of ours. */
  async function earlierParts(): Promise<string[]> {
    const index = await readJsonFile(`${path}.index.json`, EARLIER_INDEX).catch(() => null);
    const map = isJsonObject(index) ? index["weight_map"] : null;
    const files = new Set(isJsonObject(map) ? Object.values(map) : []);
    return [...files].flatMap((file) => {
      const number = typeof file === "string" ? Number(/-(\d{5,})(\.safetensors)?$/.exec(file)?.[1]) : Number.NaN;
      const part = Number.isInteger(number) ? partPath(path, number) : "";
      return part !== "" && basename(part) === file ? [part] : [];
    });
  }

  async function guarded<T>(step: () => Promise<T>): Promise<T> {
    try {
      return await step();
    } catch (cause) {
      throw new StratumError(
        "file/write-failed",
        `${path} could not be written: ${messageOf(cause)}`,
        "check free space, permissions and that the folder exists",
        cause,
      );
    }
  }

  return {
    async add({ ids, states }) {
      if (
        inPart > 0 &&
        (writer.bodyBytes + states.byteLength + ids.byteLength > partBytes || writer.headerBytes > PART_HEADER_BYTES)
      ) {
        await endPart();
        writer = await createSafetensorsWriter(path, { metadata });
      }
      const i = sequences;
      const shape = tokens === "all" ? [layers, ids.length, d] : [layers, d];
      await writer.add(`ids_${i}`, "I32", [ids.length], new Uint8Array(Int32Array.from(ids).buffer));
      await writer.add(
        `hidden_${i}`,
        "F32",
        shape,
        new Uint8Array(states.buffer, states.byteOffset, states.byteLength),
      );
      sequences++;
      inPart++;
      return i;
    },
    async finish() {
      const earlier = await earlierParts();
      const index = `${path}.index.json`;
      if (parts.length === 0) {
        // An index of an earlier run would contradict the whole file.
        await guarded(() => rm(index, { force: true }));
        await writer.finish();
        await guarded(() => removeAll(earlier));
        return [path];
      }
      await endPart();
      const written = parts.map((part) => part.path);
      await guarded(async () => {
        await writeFile(`${index}.partial`, indexText(parts));
        await rm(index, { force: true });
        for (const file of written) await rename(`${file}.partial`, file);
        await rename(`${index}.partial`, index);
        await removeAll([path, ...earlier.filter((file) => !written.includes(file))]);
      });
      return [...written, index];
    },
    async leave() {
      const whole = parts.map((part) => `${part.path}.partial`);
      if (inPart === 0) {
        await writer.abort();
        return whole;
      }
      await writer.finish(true);
      return [...whole, `${path}.partial`];
    },
    async abort() {
      await writer.abort();
      await removeAll(parts.map((part) => `${part.path}.partial`));
    },
  };
}

async function removeAll(files: readonly string[]): Promise<void> {
  for (const file of files) await rm(file, { force: true });
}

/** The index of sharded checkpoints: which tensor lies in which part. */
function* indexText(parts: readonly { path: string; sequences: number; bytes: number }[]): Generator<string> {
  yield `{\n  "metadata": {"total_size": ${parts.reduce((sum, { bytes }) => sum + bytes, 0)}},\n  "weight_map": {`;
  let i = 0;
  for (const part of parts) {
    const file = JSON.stringify(basename(part.path));
    for (let k = 0; k < part.sequences; k++, i++)
      yield `${i === 0 ? "" : ","}\n    "ids_${i}": ${file},\n    "hidden_${i}": ${file}`;
  }
  yield "\n  }\n}\n";
}
