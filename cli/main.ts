#!/usr/bin/env node
/** The command line: declares the commands, turns failures into exit codes. */
import { Command, CommanderError } from "commander";
import { benchCommand } from "./bench.ts";
import { collectCommand } from "./collect.ts";
import { packageVersion } from "./common.ts";
import { compareCommand } from "./compare.ts";
import { convertCommand } from "./convert.ts";
import { demoCommand } from "./demo.ts";
import { doctorCommand } from "./doctor.ts";
import { evalCommand } from "./eval.ts";
import { extractCommand } from "./extract.ts";
import { inspectCommand } from "./inspect.ts";
import { mergeCommand } from "./merge.ts";
import { rankCommand } from "./rank.ts";
import { reportCommand } from "./report.ts";
import { statesCommand } from "./states.ts";
import { submitCommand } from "./submit.ts";
import { sweepCommand } from "./sweep.ts";
import { EXIT, exitCodeOf, reportError, stopping, warn } from "./terminal.ts";
import { trainCommand } from "./train.ts";
import { viewCommand } from "./view.ts";
import { workerCommand } from "./worker.ts";

const program = new Command("stratum")
  .description("Ranks an LLM's candidate responses by what the model's own middle layers know about them.")
  .version(packageVersion());
rankCommand(program);
mergeCommand(program);
submitCommand(program);
workerCommand(program);
collectCommand(program);
trainCommand(program);
evalCommand(program);
sweepCommand(program);
reportCommand(program);
statesCommand(program);
extractCommand(program);
convertCommand(program);
viewCommand(program);
compareCommand(program);
inspectCommand(program);
doctorCommand(program);
demoCommand(program);
benchCommand(program);

/** Usage errors are thrown, so that they end with this program's exit code, and name the help that fits. */
function strict(command: Command, path: string): void {
  command
    .exitOverride()
    .showHelpAfterError(`  fix: ${path} --help shows what is possible`)
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error:/, "error usage/arguments:")) });
  for (const child of command.commands) strict(child, `${path} ${child.name()}`);
}
strict(program, "stratum");

// A closed stdout is reported by the write that meets it; without a listener the process would die of the event.
process.stdout.on("error", () => undefined);
process.stderr.on("error", () => undefined);

try {
  await program.parseAsync();
} catch (thrown) {
  if (thrown instanceof CommanderError) process.exitCode = thrown.exitCode === 0 ? EXIT.ok : EXIT.usage;
  else if (stopping()?.signal.aborted && thrown === stopping()?.signal.reason) {
    warn("stopped before the work began; what was downloaded is kept");
    process.exitCode = stopping()?.exitCode() ?? EXIT.interrupted;
  } else {
    reportError(thrown);
    process.exitCode = exitCodeOf(thrown);
  }
}
// Dawn keeps the process alive as long as its objects live; stdout has been awaited by every write.
process.exit();
