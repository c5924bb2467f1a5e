/** `stratum doctor`: which adapter runs here and why, and whether it computes right. */
import type { Command } from "commander";
import type { AdapterTrial } from "../engine/adapter.ts";
import { embeddedSupported } from "../engine/embedded.ts";
import { createEngine } from "../engine/model.ts";
import { type CheckResult, selfCheck } from "../engine/self-check.ts";
import { messageOf, StratumError } from "../errors.ts";
import { addCommonOptions, type CommonOptions, packageVersion } from "./common.ts";
import { formatBytes, formatCount, formatFields, formatTable } from "./format.ts";
import { EXIT, styled, writeStdout } from "./terminal.ts";

const EXAMPLES = `
Examples:
  $ stratum doctor
  $ stratum doctor --adapter embedded --json

The verdict is a real one: every kernel is dispatched, read back and compared with its CPU twin.
Exit codes: 0 healthy, 3 no adapter or wrong results.`;

/** What is known of this platform, with what was tested and what was not. */
const PLATFORMS: Readonly<Record<string, string>> = {
  "linux x64":
    "tested on software adapters (SwiftShader, embedded; lavapipe); real GPUs by the same Vulkan path: not tested",
  "linux arm64": "not tested; nothing is embedded: a Vulkan driver must be installed",
  "darwin arm64": "not tested; runs on Metal, nothing is embedded",
  "darwin x64": "not tested; runs on Metal, nothing is embedded",
  "win32 x64": "not tested; runs on D3D12, nothing is embedded",
  "win32 arm64": "not tested; runs on D3D12, nothing is embedded",
};

/** Declares the command. */
export function doctorCommand(program: Command): void {
  const command = program
    .command("doctor")
    .description("check the adapter: which one is taken and why, and a real dispatch read back")
    .addHelpText("after", EXAMPLES);
  addCommonOptions(command, "JSON on stdout").action(async (flags: CommonOptions) => {
    process.exitCode = await runDoctor(flags);
  });
}

function why(source: string, trials: readonly AdapterTrial[]): string {
  const failed = trials.filter(({ outcome }) => outcome === "failed");
  if (source === "system") return "the system offers it";
  return failed.length === 0
    ? "asked for"
    : `fallback: ${failed.map((trial) => `${trial.source}: ${trial.detail}`).join("; ")}`;
}

async function runDoctor(flags: CommonOptions): Promise<number> {
  const platform = `${process.platform} ${process.arch}`;
  const base = {
    version: packageVersion(),
    node: process.version,
    platform,
    platform_note: PLATFORMS[platform] ?? "not tested; Dawn has no build for it",
    embedded_available: embeddedSupported(),
    asked_for: flags.adapter ?? "auto",
  };
  let failure: StratumError | undefined;
  let checks: CheckResult[] = [];
  let info: Awaited<ReturnType<typeof createEngine>>["device"]["info"] | undefined;
  try {
    using engine = await createEngine(flags.adapter === undefined ? {} : { adapter: flags.adapter });
    info = engine.device.info;
    checks = await selfCheck(engine);
    const wrong = checks.filter(({ ok }) => !ok);
    if (wrong.length > 0) {
      failure = new StratumError(
        "device/wrong-results",
        `${info.name} computes wrong results in ${wrong.map(({ kernel, failure: why }) => (why === null ? kernel : `${kernel} (${why})`)).join(", ")}`,
        "update the driver, or use --adapter embedded; please report this with the output of `stratum doctor --json`",
      );
    }
  } catch (thrown) {
    failure =
      thrown instanceof StratumError
        ? thrown
        : new StratumError("device/check-failed", messageOf(thrown), "try --adapter embedded", thrown);
  }
  const verdict = failure === undefined ? "healthy" : "broken";
  if (flags.json) {
    const error = failure === undefined ? null : { code: failure.code, message: failure.message, fix: failure.fix };
    await writeStdout(`${JSON.stringify({ ...base, verdict, error, adapter: info ?? null, checks }, null, 2)}\n`);
  } else {
    const fields: [string, string][] = [
      ["stratum", `${base.version} on Node ${base.node}, ${platform} (${base.platform_note})`],
      [
        "embedded",
        base.embedded_available ? "SwiftShader is available as a fallback" : "no embedded adapter on this platform",
      ],
    ];
    if (info) {
      const { limits } = info;
      fields.push(
        ["adapter", `${info.name} (${info.source}${info.software ? ", software" : ""})`],
        ["why", why(info.source, info.trials)],
        ["device", [info.vendor, info.architecture].filter(Boolean).join(" ") || "unnamed"],
        ["features", info.features.join(", ") || "none of those that Stratum uses"],
        [
          "subgroups",
          info.subgroupSize > 0
            ? `${info.subgroupSize} lanes`
            : "none of a fixed size: the kernels without subgroups run",
        ],
        [
          "limits",
          `buffers ${formatBytes(limits.maxBufferSize)}, bindings ${formatBytes(limits.maxStorageBufferBindingSize)}, workgroups of ${formatCount(limits.maxComputeInvocationsPerWorkgroup)} with ${formatBytes(limits.maxComputeWorkgroupStorageSize)}`,
        ],
      );
    }
    const table = formatTable(
      ["kernel", "case", "error", "ms", ""],
      checks.map((check) => [
        check.kernel,
        check.title,
        check.error.toExponential(1),
        check.milliseconds.toFixed(0),
        check.ok ? "ok" : "WRONG",
      ]),
      [2, 3],
    );
    const last =
      failure === undefined
        ? styled("green", "healthy: every kernel gives what its CPU twin gives")
        : `${styled("red", `broken: ${failure.code}`)}: ${failure.message}\n  fix: ${failure.fix}`;
    await writeStdout(`${formatFields(fields)}\n\n${checks.length > 0 ? `${table}\n\n` : ""}${last}\n`);
  }
  return failure === undefined ? EXIT.ok : EXIT.environment;
}
