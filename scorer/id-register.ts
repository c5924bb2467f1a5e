/**
 * Remembers the ids of millions of lines in about 25 bytes each, to find one that is used twice. An id is kept as 96 bits
 * of its SHA-256: among 10^9 ids two different ones meet with a chance of 10^-11. What is kept is a row of records of a
 * fixed size, which a file can hold beside a run that is to go on later.
 */
import { createHash } from "node:crypto";
import { StratumError } from "../errors.ts";
import type { Id } from "./lists.ts";

/** Bytes of a claim: 12 of the hash, 4 of the line. */
export const CLAIM_BYTES = 16;

const HASH_WORDS = 3;
const CLAIM_WORDS = CLAIM_BYTES / 4;
/** Claims that are allocated together. */
const BLOCK = 2 ** 16;
/** The table of places grows before it is fuller than this. */
const MAX_LOAD = 0.6;

export interface IdRegister {
  /** Claims so far, of ids that were used before, too. */
  readonly size: number;
  /** Claims an id. @returns the line that had it before */
  claim(id: Id, line: number): number | undefined;
  /** Claims `from` up to `to`, 16 bytes each: words of this machine's byte order. */
  bytes(from: number, to: number): Uint8Array;
}

/**
 * @param saved claims of an earlier run, in their order
 * @throws {StratumError} `list/bad-claims` where they are no whole number of claims
 */
export function createIdRegister(saved: Uint8Array = new Uint8Array(0)): IdRegister {
  const blocks: Uint32Array[] = [];
  let size = 0;
  // Open addressing: a place holds the number of a claim plus 1.
  let places = new Uint32Array(1024);

  const block = (claim: number): Uint32Array => {
    const index = Math.floor(claim / BLOCK);
    blocks[index] ??= new Uint32Array(BLOCK * CLAIM_WORDS);
    return blocks[index];
  };
  const at = (claim: number): number => (claim % BLOCK) * CLAIM_WORDS;

  /** The place of a hash, or the free one where it belongs. */
  function find(words: Uint32Array, from: number): number {
    const mask = places.length - 1;
    for (let place = words[from] & mask; ; place = (place + 1) & mask) {
      const claim = places[place] - 1;
      if (claim < 0) return place;
      const [other, start] = [block(claim), at(claim)];
      let same = 0;
      while (same < HASH_WORDS && other[start + same] === words[from + same]) same++;
      if (same === HASH_WORDS) return place;
    }
  }

  function grow(): void {
    places = new Uint32Array(2 * places.length);
    // Of claims with one hash the first keeps the place.
    for (let claim = 0; claim < size; claim++) {
      const place = find(block(claim), at(claim));
      if (places[place] === 0) places[place] = claim + 1;
    }
  }

  /** Adds the claim that was written behind the last. @returns the line that had its id before */
  function enter(): number | undefined {
    if (size + 1 > MAX_LOAD * places.length) grow();
    const place = find(block(size), at(size));
    const earlier = places[place];
    size++;
    if (earlier === 0) {
      places[place] = size;
      return undefined;
    }
    return block(earlier - 1)[at(earlier - 1) + HASH_WORDS];
  }

  if (saved.byteLength % CLAIM_BYTES !== 0) {
    throw new StratumError(
      "list/bad-claims",
      `${saved.byteLength} bytes are no whole number of ids of ${CLAIM_BYTES}`,
      "start the run again with --restart",
    );
  }
  const aligned = new Uint32Array(new Uint8Array(saved).buffer);
  for (let from = 0; from < aligned.length; from += CLAIM_WORDS) {
    block(size).set(aligned.subarray(from, from + CLAIM_WORDS), at(size));
    enter();
  }

  return {
    get size() {
      return size;
    },
    claim(id, line) {
      const digest = createHash("sha256").update(String(id)).digest();
      const [words, start] = [block(size), at(size)];
      for (let i = 0; i < HASH_WORDS; i++) words[start + i] = digest.readUInt32LE(4 * i);
      words[start + HASH_WORDS] = line;
      return enter();
    },
    bytes(from, to) {
      const out = new Uint32Array((to - from) * CLAIM_WORDS);
      for (let claim = from; claim < to; ) {
        const count = Math.min(to - claim, BLOCK - (claim % BLOCK));
        out.set(block(claim).subarray(at(claim), at(claim) + count * CLAIM_WORDS), (claim - from) * CLAIM_WORDS);
        claim += count;
      }
      return new Uint8Array(out.buffer);
    },
  };
}
