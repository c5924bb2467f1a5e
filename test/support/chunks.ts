/** Byte sources that are cut anywhere, as pipes and files cut them. */

/** All items of a generator. */
export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** The bytes in chunks that end at `cuts`. */
export async function* chunks(bytes: Uint8Array, cuts: readonly number[] = []): AsyncGenerator<Uint8Array> {
  let start = 0;
  // One buffer for every chunk, as a source that reuses its memory would give them.
  const reused = new Uint8Array(bytes.length);
  for (const end of [...cuts, bytes.length]) {
    reused.set(bytes.subarray(start, end));
    yield reused.subarray(0, end - start);
    reused.fill(0x21);
    start = end;
  }
}
