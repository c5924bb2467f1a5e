/**
 * Batches: token sequences packed into one run of rows, without padding, each list's common prefix once. Cut by a
 * budget of rows, never by a count of sequences.
 */
import { StratumError } from "../errors.ts";
import { commonPrefixLength } from "../weights/prompt.ts";

/**
 * A sequence counts as at least this many rows of a batch's budget, so that the rows which are read out (one a
 * sequence) are at most an eighth of the rows.
 */
export const MIN_SEQUENCE_ROWS = 8;

/** Sequences that may share their beginning: a list's prompt and candidates. */
export interface SequenceGroup {
  /** (T) token ids each; none is empty. */
  readonly sequences: readonly Int32Array[];
  /** The first sequence is needed beside every other: a group that is cut repeats it. */
  readonly anchored?: boolean;
  /**
   * A sequence's state is the mean over its tokens from this one on; null, or no entry: the state of its last token.
   * For a runner with pooling `mean`.
   */
  readonly poolFrom?: readonly (number | null)[];
}

/** Where a sequence lies in a batch: its token t is row `prefixStart + t` below `prefixLength`, else `ownStart + t - prefixLength`. */
export interface PackedSequence {
  /** Index of the group in the input, and of the sequence in its group. */
  readonly group: number;
  readonly index: number;
  readonly prefixStart: number;
  readonly prefixLength: number;
  readonly ownStart: number;
  /** T of the sequence, prefix included. */
  readonly length: number;
  /** The first of the tokens that are averaged, up to the last: length - 1 is the last alone. */
  readonly poolFrom: number;
}

export interface Batch {
  /** (T) token ids of the packed rows. */
  readonly ids: Int32Array;
  /** (T, 4): first row of the prefix, its length, first own row, position. See the attention kernel. */
  readonly spans: Uint32Array;
  readonly sequences: readonly PackedSequence[];
}

/** The row of a sequence's token t. */
export function rowOf(sequence: PackedSequence, t: number): number {
  return t < sequence.prefixLength ? sequence.prefixStart + t : sequence.ownStart + t - sequence.prefixLength;
}

/** The rows that hold a sequence's pooled tokens: (a0, an, b0, bn), an of them in the prefix from a0 on, bn of its own. */
export function pooledRows(sequence: PackedSequence): readonly [a0: number, an: number, b0: number, bn: number] {
  const { prefixStart, prefixLength, ownStart, length, poolFrom } = sequence;
  const own = Math.max(poolFrom, prefixLength);
  return [prefixStart + poolFrom, Math.max(0, prefixLength - poolFrom), ownStart + own - prefixLength, length - own];
}

/** A sequence of a group. */
interface Member {
  readonly index: number;
  readonly ids: Int32Array;
  readonly poolFrom: number;
}

/** Some sequences of one group, with the prefix that they share. */
interface Chunk {
  readonly group: number;
  readonly members: readonly Member[];
  readonly prefixLength: number;
  readonly rows: number;
  /** What it takes of the budget. */
  readonly cost: number;
  /** (members) whose rows hold a member's: its own, or those of a neighbour that begins with it. */
  readonly hosts: readonly number[];
}

function membersOf({ sequences, poolFrom = [] }: SequenceGroup): Member[] {
  return sequences.map((ids, index) => ({ index, ids, poolFrom: poolFrom[index] ?? ids.length - 1 }));
}

function sharedPrefix([first, ...others]: readonly Member[]): number {
  return others.reduce((length, { ids }) => Math.min(length, commonPrefixLength(first.ids, ids)), first.ids.length);
}

/** How a group's sequences come into a batch. */
type Sharing = Required<Pick<PackOptions, "sharePrefix" | "longFrom">>;

function isLong({ ids }: Member, longFrom: number | null): boolean {
  return longFrom !== null && ids.length > longFrom;
}

function chunkOf(group: number, members: readonly Member[], { sharePrefix, longFrom }: Sharing): Chunk {
  // A long sequence is another from its first token on.
  const alike = members.every((member) => isLong(member, longFrom) === isLong(members[0], longFrom));
  const prefixLength = sharePrefix && alike && members.length > 1 ? sharedPrefix(members) : 0;
  const hosts = hostsOf(members, { sharePrefix, longFrom });
  const own = members.map(({ ids }, i) => (hosts[i] === i ? ids.length - prefixLength : 0));
  const rows = own.reduce((sum, length) => sum + length, prefixLength);
  const cost = own.reduce((sum, length) => sum + Math.max(length, MIN_SEQUENCE_ROWS), prefixLength);
  return { group, members, prefixLength, rows, cost, hosts };
}

/**
 * Neighbours that say the same as far as they go need one run of rows, the longest's: a token's state depends on what
 * stands before it, not on what comes after. So one sequence is read out in several ways for the price of one.
 */
function hostsOf(members: readonly Member[], { sharePrefix, longFrom }: Sharing): number[] {
  const hosts: number[] = [];
  let first = 0;
  let longest = 0;
  for (const [i, member] of members.entries()) {
    const host = members[longest];
    const shorter = Math.min(member.ids.length, host.ids.length);
    const alike =
      sharePrefix &&
      isLong(member, longFrom) === isLong(host, longFrom) &&
      commonPrefixLength(host.ids, member.ids) === shorter;
    if (!alike) first = i;
    if (!alike || member.ids.length > shorter) longest = i;
    hosts.fill(longest, first);
    hosts.push(longest);
  }
  return hosts;
}

/**
 * Cuts a group into chunks that cost at most `budget` rows; each repeats what its members share. A sequence that costs
 * more is a chunk of its own: the caller decides whether that runs.
 */
function chunksOf(group: number, sequences: SequenceGroup, budget: number, share: Sharing): Chunk[] {
  const all = membersOf(sequences);
  const anchor = sequences.anchored ? all.slice(0, 1) : [];
  const whole = chunkOf(group, all, share);
  if (whole.cost <= budget || all.length === 1) return [whole];
  const chunks: Chunk[] = [];
  for (let first = anchor.length; first < all.length; ) {
    // The cost grows with the members: search the longest run that fits.
    let [fits, fails] = [first + 1, all.length + 1];
    while (fails - fits > 1) {
      const middle = (fits + fails) >> 1;
      if (chunkOf(group, [...anchor, ...all.slice(first, middle)], share).cost <= budget) fits = middle;
      else fails = middle;
    }
    chunks.push(chunkOf(group, [...anchor, ...all.slice(first, fits)], share));
    first = fits;
  }
  return chunks;
}

function pack(chunks: readonly Chunk[]): Batch {
  const total = chunks.reduce((sum, { rows }) => sum + rows, 0);
  const ids = new Int32Array(total);
  const spans = new Uint32Array(total * 4);
  const sequences: PackedSequence[] = [];
  let row = 0;
  const place = (tokens: Int32Array, prefixStart: number, prefixLength: number, ownStart: number, position: number) => {
    ids.set(tokens, row);
    for (let t = 0; t < tokens.length; t++)
      spans.set([prefixStart, prefixLength, ownStart, position + t], (row + t) * 4);
    row += tokens.length;
  };
  for (const chunk of chunks) {
    const prefixStart = row;
    const { group, members, prefixLength, hosts } = chunk;
    place(members[0].ids.subarray(0, prefixLength), prefixStart, prefixLength, prefixStart + prefixLength, 0);
    const starts = new Map<number, number>();
    for (const [i, { index, ids: tokens, poolFrom }] of members.entries()) {
      const ownStart = starts.get(hosts[i]) ?? row;
      if (!starts.has(hosts[i])) {
        starts.set(hosts[i], row);
        place(members[hosts[i]].ids.subarray(prefixLength), prefixStart, prefixLength, ownStart, prefixLength);
      }
      sequences.push({ group, index, prefixStart, prefixLength, ownStart, length: tokens.length, poolFrom });
    }
  }
  return { ids, spans, sequences };
}

export interface PackOptions {
  /** Rows a batch may hold. A longer sequence comes in a batch of its own. */
  readonly budget: number;
  /** Compute a group's common prefix once; default true. The states are the same either way. */
  readonly sharePrefix?: boolean;
  /** Tokens beyond which a sequence shares no prefix with a shorter one (`longFrom` of a model); default null: none is. */
  readonly longFrom?: number | null;
}

/** @throws {StratumError} `list/empty-sequence`, `usage/pool-from` */
function checkGroup(group: SequenceGroup, index: number): void {
  for (const { index: s, ids, poolFrom } of membersOf(group)) {
    if (ids.length === 0) {
      throw new StratumError("list/empty-sequence", `sequence ${s} of group ${index} has no token`, "leave it out");
    }
    if (Number.isInteger(poolFrom) && poolFrom >= 0 && poolFrom < ids.length) continue;
    throw new StratumError(
      "usage/pool-from",
      `sequence ${s} of group ${index} is pooled from token ${poolFrom} on; it has ${ids.length}`,
      `give poolFrom a whole number from 0 to ${ids.length - 1}, or null for the last token`,
    );
  }
}

/** Packs groups into batches, in order. @throws {StratumError} `list/empty-sequence`, `usage/pool-from` */
export function packBatches(
  groups: readonly SequenceGroup[],
  { budget, sharePrefix = true, longFrom = null }: PackOptions,
): Batch[] {
  const batches: Batch[] = [];
  let open: Chunk[] = [];
  let cost = 0;
  for (const [index, group] of groups.entries()) {
    checkGroup(group, index);
    if (group.sequences.length === 0) continue;
    for (const chunk of chunksOf(index, group, budget, { sharePrefix, longFrom })) {
      if (open.length > 0 && cost + chunk.cost > budget) {
        batches.push(pack(open));
        open = [];
        cost = 0;
      }
      open.push(chunk);
      cost += chunk.cost;
    }
  }
  if (open.length > 0) batches.push(pack(open));
  return batches;
}

/** Budget that a group takes alone. */
export function groupCost(
  group: SequenceGroup,
  { sharePrefix = true, longFrom = null }: Omit<PackOptions, "budget"> = {},
): number {
  return chunkOf(0, membersOf(group), { sharePrefix, longFrom }).cost;
}
