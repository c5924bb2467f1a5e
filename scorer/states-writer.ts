/** Files of hidden states: one safetensors file, or numbered parts with an index, and a line a sequence beside it. */
import { existsSync } from "node:fs";
import { rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, normalize } from "node:path";
import { messageOf, StratumError } from "../errors.ts";
import { writeSynced } from "../weights/durable.ts";
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
  /** Go on with what an earlier writer left: how far it was, and the tokens of its last part's sequences. */
  readonly begun?: { readonly progress: StatesProgress; readonly tokens: readonly number[] };
  /** What fails leaves what was written, to be gone on with. */
  readonly keep?: boolean;
}

/** What lies in a part. */
export interface StatesPart {
  readonly sequences: number;
  readonly bytes: number;
}

/** How far a writer is: what it takes to go on with its files. */
export interface StatesProgress {
  /** Parts that are whole. */
  readonly parts: readonly StatesPart[];
  /** The part under way. */
  readonly part: StatesPart;
}

/** Writes `ids_i` (T) I32 and `hidden_i` F32 for i = 0, 1, ... */
export interface StatesWriter {
  readonly progress: StatesProgress;
  /** Whether the sequences belong into the part under way. */
  fits(sequences: readonly ExtractedSequence[]): boolean;
  /**
   * Adds the sequences of one line, which come into one part, a new one where they do not fit.
   * @returns the number i of the first
   * @throws {StratumError} `file/write-failed`
   */
  add(sequences: readonly ExtractedSequence[]): Promise<number>;
  /** Ends the part under way: it is whole, under a name that ends in `.partial`. @throws {StratumError} `file/write-failed` */
  endPart(): Promise<void>;
  /** Brings what there is to the disk. @throws {StratumError} `file/write-failed` */
  sync(): Promise<void>;
  /** Gives the files their names. @returns the paths written */
  finish(): Promise<readonly string[]>;
  /** The work ended early: what there is stays, to be gone on with. */
  leave(): Promise<void>;
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
export function partPath(path: string, part: number): string {
  const name = basename(path);
  const dot = name.endsWith(".safetensors") ? name.length - ".safetensors".length : name.length;
  return join(dirname(path), `${name.slice(0, dot)}-${String(part).padStart(5, "0")}${name.slice(dot)}`);
}

/** `OUT.index.jsonl`: a line a sequence. */
export function indexPath(output: string): string {
  return `${output}.index.jsonl`;
}

/** The names of finished states: of one file without parts, else of the parts and of the index of their tensors. */
export function statesPaths(path: string, parts: number): string[] {
  if (parts === 0) return [path];
  return [...Array.from({ length: parts }, (_, i) => partPath(path, i + 1)), `${path}.index.json`];
}

/**
 * @throws {StratumError} `file/write-failed`, `file/not-a-file`; `safetensors/other-body` where less was left than `begun`
 *   says
 */
export async function createStatesWriter(file: string, options: StatesWriterOptions): Promise<StatesWriter> {
  const { layers, tokens, d, metadata, partBytes, begun, keep = false } = options;
  const path = normalize(file);
  const found = await stat(path).catch(() => undefined);
  if (found !== undefined && !found.isFile()) {
    throw new StratumError("file/not-a-file", `${path} is not a regular file`, "give -o the name of a file");
  }
  // Given out as it is with every line, and so never changed.
  let parts: readonly StatesPart[] = begun?.progress.parts ?? [];
  let inPart = begun?.progress.part.sequences ?? 0;
  let sequences = parts.reduce((sum, part) => sum + part.sequences, inPart);
  // Until there is a second part, the first is the file itself. None is open where the last part is whole already.
  let writer = await openPart(begun?.tokens);

  function shapeOf(length: number): readonly number[] {
    return tokens === "all" ? [layers, length, d] : [layers, d];
  }

  /** Opens a part: a new one, or the one that was left with sequences of these tokens. */
  async function openPart(left: readonly number[] = []): Promise<SafetensorsWriter | null> {
    if (inPart === 0) return createSafetensorsWriter(path, { metadata, keep });
    if (!existsSync(`${path}.partial.body`)) return null;
    const tensors = left.flatMap((length, i) => [
      { name: `ids_${sequences - inPart + i}`, dtype: "I32" as const, shape: [length] },
      { name: `hidden_${sequences - inPart + i}`, dtype: "F32" as const, shape: shapeOf(length) },
    ]);
    const opened = await createSafetensorsWriter(path, { metadata, keep, begun: tensors });
    const written = begun?.progress.part.bytes;
    if (opened.bodyBytes === written) return opened;
    // Under other lengths every state behind would be read from the wrong place.
    await opened.leave();
    throw new StratumError(
      "safetensors/other-body",
      `${path}: its sequences take ${opened.bodyBytes} bytes, and ${written} were written`,
      "throw away what there is, and begin anew",
    );
  }

  const bytesInPart = () => writer?.bodyBytes ?? begun?.progress.part.bytes ?? 0;

  /** May be cut short anywhere and done again: what is done is left alone. */
  async function endPart(): Promise<void> {
    const target = partPath(path, parts.length + 1);
    const part = { sequences: inPart, bytes: bytesInPart() };
    await writer?.finish(true);
    await guarded(() => renameIfThere(`${path}.partial`, `${target}.partial`));
    parts = [...parts, part];
    inPart = 0;
    writer = null;
  }

  /** The writer of the part under way; after a part's end, of the next. */
  async function current(): Promise<SafetensorsWriter> {
    writer ??= await openPart();
    if (writer !== null) return writer;
    throw new StratumError("file/write-failed", `${path}: its last part is whole`, "end it before adding to it");
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

  function fits(added: readonly ExtractedSequence[]): boolean {
    if (inPart === 0 || writer === null) return inPart === 0;
    const bytes = added.reduce((sum, { ids, states }) => sum + states.byteLength + ids.byteLength, 0);
    return writer.bodyBytes + bytes <= partBytes && writer.headerBytes <= PART_HEADER_BYTES;
  }

  return {
    get progress() {
      return { parts, part: { sequences: inPart, bytes: bytesInPart() } };
    },
    fits,
    async add(added) {
      if (!fits(added)) await endPart();
      const open = await current();
      const first = sequences;
      for (const { ids, states } of added) {
        await open.add(`ids_${sequences}`, "I32", [ids.length], new Uint8Array(Int32Array.from(ids).buffer));
        await open.add(
          `hidden_${sequences}`,
          "F32",
          shapeOf(ids.length),
          new Uint8Array(states.buffer, states.byteOffset, states.byteLength),
        );
        sequences++;
        inPart++;
      }
      return first;
    },
    endPart,
    async sync() {
      await writer?.sync();
    },
    async finish() {
      const earlier = await earlierParts();
      const index = `${path}.index.json`;
      if (parts.length === 0) {
        // An index of an earlier run would contradict the whole file.
        await guarded(() => rm(index, { force: true }));
        if (inPart === 0) await current();
        await writer?.finish();
        // A part that became whole and was then found to be the only one.
        await guarded(() => renameIfThere(`${path}.partial`, path));
        await guarded(() => removeAll(earlier));
        return statesPaths(path, 0);
      }
      if (inPart > 0) await endPart();
      else await writer?.abort();
      const written = statesPaths(path, parts.length);
      await guarded(async () => {
        // A run that was stopped here may have left one.
        await rm(`${index}.partial`, { force: true });
        await writeSynced(`${index}.partial`, indexText(path, parts));
        await rm(index, { force: true });
        for (const file of written.slice(0, -1)) await renameIfThere(`${file}.partial`, file);
        await rename(`${index}.partial`, index);
        await removeAll([path, ...earlier.filter((file) => !written.includes(file))]);
      });
      return written;
    },
    async leave() {
      await (inPart === 0 ? writer?.abort() : writer?.leave());
    },
    async abort() {
      await writer?.abort();
      await removeAll(parts.map((_, i) => `${partPath(path, i + 1)}.partial`));
    },
  };
}

async function renameIfThere(from: string, to: string): Promise<void> {
  if (existsSync(from)) await rename(from, to);
}

async function removeAll(files: readonly string[]): Promise<void> {
  for (const file of files) await rm(file, { force: true });
}

/** The index of sharded checkpoints: which tensor lies in which part. */
function* indexText(path: string, parts: readonly StatesPart[]): Generator<string> {
  yield `{\n  "metadata": {"total_size": ${parts.reduce((sum, { bytes }) => sum + bytes, 0)}},\n  "weight_map": {`;
  let i = 0;
  for (const [number, part] of parts.entries()) {
    const file = JSON.stringify(basename(partPath(path, number + 1)));
    for (let k = 0; k < part.sequences; k++, i++)
      yield `${i === 0 ? "" : ","}\n    "ids_${i}": ${file},\n    "hidden_${i}": ${file}`;
  }
  yield "\n  }\n}\n";
}
