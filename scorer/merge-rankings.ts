/** Rankings of shards, put together in the order of the input: what one run over all of it would have written. */
import { StratumError } from "../errors.ts";
import { endOfString, show } from "../weights/json.ts";
import { createIdRegister } from "./id-register.ts";
import type { Id } from "./lists.ts";
import { claimPlaced, type FoundShard, type PlacedRecord, placedLines } from "./merge.ts";
import { errorRecord, toJsonLine } from "./rankings.ts";
import { openShardFiles } from "./shard-reading.ts";

export interface MergedLine {
  /** With its newline. */
  readonly text: string;
  readonly failed: boolean;
}

/**
 * The lines of all shards in the order of the input. Ids that two shards use are found here, and give the error that one
 * run would have given.
 * @throws {StratumError} `usage/shard-changed` where a shard's rankings are not those of its record, `usage/bad-shard`
 */
export async function* mergedLines(shards: readonly FoundShard[]): AsyncGenerator<MergedLine> {
  const register = createIdRegister();
  const files = openShardFiles(shards.length);
  const readings = shards.map(({ path, manifest }) => files.read(path, manifest.files[0]));
  try {
    for (const { shard, line } of placedLines(shards)) {
      const text = await readings[shard].line();
      const { id, error } = headOf(text, line);
      const twice = claimPlaced(register, { line, id, error });
      yield twice === null
        ? { text: `${text}\n`, failed: error !== undefined }
        : { text: toJsonLine(errorRecord(id, twice)), failed: true };
    }
    for (const reading of readings) await reading.end();
  } finally {
    await files.close();
  }
}

/** Every record begins with its id, and an error's with its code and message: long ones are not parsed whole. */
function headOf(text: string, line: number): Omit<PlacedRecord, "line"> {
  const id = literalAfter('{"id":', text, 0);
  if (id === null) {
    throw new StratumError(
      "usage/bad-shard",
      `the record of line ${line} has no id: ${show(text.slice(0, 80))}`,
      "give files that `rank --shard` wrote",
    );
  }
  const code = literalAfter(',"error":{"code":', text, id.end);
  const message = code === null ? null : literalAfter(',"message":', text, code.end);
  if (code === null || message === null) return { id: id.value };
  return { id: id.value, error: { code: String(code.value), message: String(message.value) } };
}

interface Literal {
  readonly value: Id;
  /** Where it ends in the text. */
  readonly end: number;
}

const NUMBER = /-?[0-9][^,}]*/y;

/** The string or number behind `before`, which stands at `start`. */
function literalAfter(before: string, text: string, start: number): Literal | null {
  if (!text.startsWith(before, start)) return null;
  const from = start + before.length;
  NUMBER.lastIndex = from;
  const end = text[from] === '"' ? endOfString(text, from) + 1 : from + (NUMBER.exec(text)?.[0].length ?? 0);
  try {
    return { value: JSON.parse(text.slice(from, end)) as Id, end };
  } catch {
    return null;
  }
}
