/** `--queue` and `--name`: where a pool meets. */
import { type Command, Option } from "commander";
import type { PoolAddress } from "../scorer/pool.ts";
import type { CommonOptions } from "./common.ts";

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

/** The address that the flags spell. */
export function poolAddress({ queue, name }: PoolFlags): PoolAddress {
  return { url: queue, name };
}
