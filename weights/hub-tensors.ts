/** The names, types and shapes of a safetensors file that is not downloaded: its header alone, by requests for ranges. */
import { StratumError } from "../errors.ts";
import { badAnswer, type HubClient, readAll, request, retrying } from "./hub-http.ts";
import type { HubFile } from "./hub-metadata.ts";
import { MAX_HEADER_BYTES, parseSafetensorsHeader, type TensorInfo } from "./safetensors-header.ts";

/** Enough for the header of most shards, so that one request does. */
const FIRST_BYTES = 2 ** 17;

/**
 * The tensors of a file on the hub. Nothing is kept, and nothing but the header's own rules checks it: the downloaded
 * file is what counts.
 * @throws {StratumError} `hub/...`, `model/...`, `safetensors/...`
 */
export async function remoteTensors(
  client: HubClient,
  file: HubFile,
  url: string,
): Promise<ReadonlyMap<string, TensorInfo>> {
  const start = await readRange(client, file, url, 0, Math.min(FIRST_BYTES, file.size));
  if (start.byteLength < 8) {
    throw new StratumError(
      "safetensors/too-short",
      `${file.name} of ${client.id} has ${file.size} bytes; a safetensors file has at least 8`,
      "name another revision with --model NAME@REVISION",
    );
  }
  const length = start.readBigUInt64LE(0);
  if (length > BigInt(MAX_HEADER_BYTES) || Number(length) > file.size - 8) {
    throw new StratumError(
      "safetensors/header-too-large",
      `${file.name} of ${client.id}: the header's length is given as ${length} bytes, the file has ${file.size}`,
      "this is no safetensors file, or a damaged one: name another revision with --model NAME@REVISION",
    );
  }
  const end = 8 + Number(length);
  const rest = end > start.byteLength ? await readRange(client, file, url, start.byteLength, end) : Buffer.alloc(0);
  const header = Buffer.concat([start, rest]).subarray(8, end);
  return parseSafetensorsHeader(header, file.size, `${file.name} of ${client.id}`).tensors;
}

/** Bytes `from` to `end` - 1 of a file. */
async function readRange(client: HubClient, file: HubFile, url: string, from: number, end: number): Promise<Buffer> {
  if (end <= from) return Buffer.alloc(0);
  const what = `the header of ${file.name} of ${client.id}`;
  return retrying(client, client.retries.metadata, async () => {
    const headers = { range: `bytes=${from}-${end - 1}` };
    const answer = await request(client, url, { headers, what, timeoutMs: client.timeoutMs.bytes });
    if (answer.status !== 206 || !answer.headers.get("content-range")?.startsWith(`bytes ${from}-${end - 1}/`)) {
      answer.close();
      const range = answer.headers.get("content-range") ?? "none";
      throw badAnswer(client, what, `bytes ${from} to ${end - 1} were asked for, its content-range is '${range}'`);
    }
    const bytes = await readAll(answer, end - from);
    if (bytes?.byteLength === end - from) return bytes;
    throw new StratumError(
      "hub/interrupted",
      `${what} ended after ${bytes?.byteLength ?? "more than"} of ${end - from} bytes`,
      "check the network and run again",
    );
  });
}
