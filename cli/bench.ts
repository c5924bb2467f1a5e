/** `stratum bench`: timed runs, interleaved, medians. A file a subcommand. */
import type { Command } from "commander";
import { benchForwardCommand } from "./bench-forward.ts";
import { benchKernelsCommand } from "./bench-kernels.ts";
import { benchDepthCommand, benchRankCommand } from "./bench-lists.ts";
import { benchPeakCommand } from "./bench-peak.ts";
import { benchTrainCommand } from "./bench-train.ts";
import { benchTuneCommand } from "./bench-tune.ts";

/** Declares `bench` and what it can time. */
export function benchCommand(program: Command): void {
  const bench = program
    .command("bench")
    .description("time the engine on this adapter")
    .addHelpText(
      "after",
      "\nExamples:\n  $ stratum bench peak\n  $ stratum bench kernels --op matmul --html page.html\n  $ stratum bench rank --prompt 256 --candidates 8 --tokens 32",
    );
  benchPeakCommand(bench);
  benchKernelsCommand(bench);
  benchForwardCommand(bench);
  benchRankCommand(bench);
  benchDepthCommand(bench);
  benchTrainCommand(bench);
  benchTuneCommand(bench);
}
