/** `--queue` and `--name`: where a pool meets. */
import { type Command, Option } from "commander";
import type { Pool } from "../scorer/pool.ts";
import type { CommonOptions } from "./common.ts";
import { note } from "./terminal.ts";

export interface PoolFlags extends Pick<CommonOptions, "json" | "quiet"> {
  readonly queue: string;
  readonly name: string;
}

/** Adds the options of {@link PoolFlags}. */
export function addPoolOptions(command: Command): Command {
  return command
    .addOption(
      new Option("--queue <url>", "the Redis where the pool meets: redis://[user:password@]host[:port][/db]")
        .env("STRATUM_QUEUE")
        .makeOptionMandatory(),
    )
    .option("--name <name>", "of the pool: several share one Redis", "stratum");
}

/** Opens the pool that the flags name; says when its Redis goes away and comes back. @throws {StratumError} as `openPool` */
export async function openFlagged({ queue, name }: PoolFlags): Promise<Pool> {
  const { openPool } = await import("../scorer/pool.ts");
  return openPool({ url: queue, name }, (reason) => {
    note(reason === null ? "queue   the Redis is back" : `queue   the Redis is away (${reason}); waiting for it`);
  });
}
