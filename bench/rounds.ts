/**
 * Rounds: in each, every peer runs the job once while the others wait, so that a noisy machine disturbs all alike. A peer
 * that fails is out; the others go on.
 */
import { messageOf } from "../errors.ts";
import type { Peer } from "./child.ts";

export interface RoundOptions {
  /** Counted runs of a peer. */
  readonly rounds: number;
  /** Counted runs of a peer whose first run took longer than `slowMs`. */
  readonly slowRounds: number;
  readonly slowMs: number;
  /** Beyond this the first run, compilation included, is the only one. */
  readonly onceMs: number;
  /** Uncounted runs in front of each counted one, so that caches and threads are warm: default 0. */
  readonly warm?: number;
  /** Called before each step, for people. */
  readonly onStep?: (peer: string, step: string) => void;
}

export interface PeerTimes {
  readonly name: string;
  /** The adapter that it says it runs on; null where it does not tell, or never came so far. */
  readonly adapter: string | null;
  /** Milliseconds of the first run, which compiles; null where there was none. */
  readonly first: number | null;
  /** Milliseconds of the counted runs. */
  readonly times: readonly number[];
  readonly output: Float32Array | null;
  /** Why it is out. */
  readonly error: string | null;
}

type Entry = { -readonly [key in keyof PeerTimes]: PeerTimes[key] } & { times: number[]; turns: number };

/** Runs peers in turn. Never throws for what a peer does; stops them all at the end. */
export async function interleave(peers: readonly Peer[], options: RoundOptions): Promise<PeerTimes[]> {
  const { rounds, slowRounds, slowMs, onceMs, warm = 0, onStep } = options;
  const entries = peers.map(
    ({ name }): Entry => ({ name, adapter: null, first: null, times: [], output: null, error: null, turns: 0 }),
  );
  const turn = async (peer: Peer, entry: Entry, step: string, act: () => Promise<void>) => {
    onStep?.(peer.name, step);
    try {
      await act();
    } catch (cause) {
      entry.error = messageOf(cause);
      entry.turns = 0;
      peer.stop();
    }
  };
  try {
    for (const [i, peer] of peers.entries()) {
      const entry = entries[i];
      await turn(peer, entry, "first run", async () => {
        entry.adapter = await peer.prepare();
        const { ms, output } = await peer.run(true);
        entry.first = ms;
        entry.output = output;
        entry.turns = ms > onceMs ? 0 : ms > slowMs ? Math.min(slowRounds, rounds) : rounds;
      });
      // It would only hold memory while the others run.
      if (entry.turns === 0) peer.stop();
    }
    for (let round = 0; round < rounds; round++) {
      for (const [i, peer] of peers.entries()) {
        const entry = entries[i];
        if (round >= entry.turns) continue;
        await turn(peer, entry, `round ${round + 1} of ${entry.turns}`, async () => {
          for (let run = 0; run < warm; run++) await peer.run(false);
          entry.times.push((await peer.run(false)).ms);
        });
      }
    }
  } finally {
    for (const peer of peers) peer.stop();
  }
  return entries.map(({ turns, ...times }) => times);
}
