/**
 * Stratum beside its neighbours on one adapter and one job, interleaved:
 *
 *     npm run bench:peers -- matmul
 *
 * README.md in this folder has the jobs and how a row is read.
 */
import { cpus } from "node:os";
import { Command, InvalidArgumentError, Option } from "commander";
import { exitCodeOf, note, reportError, writeStdout } from "../cli/terminal.ts";
import { resolveLayer } from "../engine/layers.ts";
import { StratumError } from "../errors.ts";
import { sharedAdapter } from "./adapter.ts";
import { childPeer } from "./child.ts";
import { describeJob, type Job, SMOLLM2_135M } from "./jobs.ts";
import type { SharedAdapter } from "./protocol.ts";
import { markdownTable, type PeerRow, peerRows, textTable } from "./report.ts";
import { interleave } from "./rounds.ts";

const STRATUM = "Stratum";

interface Entrant {
  /** What `--peers` calls it. */
  readonly key: string;
  readonly name: string;
  readonly module: string;
  /** Another job than that of the run; null: it has none in this run. */
  readonly job?: (job: Job) => Job | null;
}

const ENTRANTS: readonly Entrant[] = [
  { key: "stratum", name: STRATUM, module: "stratum.ts" },
  { key: "ort-webgpu", name: "onnxruntime-node 1.30, WebGPU", module: "onnxruntime-webgpu.ts" },
  { key: "tfjs", name: "tfjs-backend-webgpu 4.22", module: "tfjs.ts" },
  { key: "jax", name: "jax-js 0.1.25", module: "jax.ts" },
  { key: "ort-cpu", name: "onnxruntime-node 1.30, CPU", module: "onnxruntime-cpu.ts" },
  {
    key: "ort-webgpu-full",
    name: "onnxruntime-node 1.30, WebGPU, all blocks",
    module: "onnxruntime-webgpu.ts",
    job: allBlocks,
  },
  { key: "ort-cpu-full", name: "onnxruntime-node 1.30, CPU, all blocks", module: "onnxruntime-cpu.ts", job: allBlocks },
];

/** What a graph costs that was exported for generation: it stops at no layer. */
function allBlocks(job: Job): Job | null {
  return job.kind === "rank" ? { ...job, layer: job.shape.layers } : null;
}

interface Flags {
  readonly adapter: string;
  readonly peers: readonly string[];
  readonly rounds: number;
  readonly slowRounds: number;
  readonly slow: number;
  readonly once: number;
  readonly timeout: number;
  readonly seed: number;
  readonly json?: boolean;
  readonly markdown?: boolean;
}

function positive(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("a whole number from 1 on");
}

function sizes(text: string): readonly number[] {
  const parts = text.split("x").map(Number);
  if (parts.length === 3 && parts.every((part) => Number.isInteger(part) && part > 0)) return parts;
  throw new InvalidArgumentError("ROWSxKxN, for example 1024x576x1536");
}

function peerKeys(text: string): readonly string[] {
  const keys = text.split(",");
  const unknown = keys.find((key) => ENTRANTS.every((entrant) => entrant.key !== key));
  if (unknown === undefined) return keys;
  throw new InvalidArgumentError(`'${unknown}' is none of ${ENTRANTS.map(({ key }) => key).join(", ")}`);
}

/** Declares a command for a kind of job. */
function declare<Sizes>(program: Command, name: string, description: string, jobOf: (flags: Sizes & Flags) => Job) {
  const keys = ENTRANTS.map(({ key }) => key);
  return program
    .command(name)
    .description(description)
    .addOption(
      new Option("--adapter <name>", "auto, system, embedded, or a part of an adapter's name")
        .env("STRATUM_ADAPTER")
        .default("auto"),
    )
    .option("--peers <list>", `which, beside Stratum: of ${keys.join(",")}`, peerKeys, keys)
    .option("--rounds <n>", "counted runs of each", positive, 7)
    .option("--slow <s>", "a first run that takes longer makes a peer slow", positive, 5)
    .option("--slow-rounds <n>", "counted runs of a slow peer", positive, 3)
    .option("--once <s>", "a first run that takes longer is the only one", positive, 60)
    .option("--timeout <s>", "a peer that does not answer for so long is out", positive, 300)
    .option("--seed <n>", "seed of weights and inputs", positive, 1)
    .option("--json", "rows as JSON on stdout")
    .option("--markdown", "a table for a document on stdout")
    .action(async (flags: Sizes & Flags) => {
      process.exitCode = await run(jobOf(flags), flags);
    });
}

function program(): Command {
  const program = new Command("bench:peers").description("Stratum beside its neighbours, interleaved in one run");
  declare<{ size: readonly number[] }>(program, "matmul", "x float32, weights bfloat16", ({ size, seed }) => {
    const [rows, k, n] = size;
    return { kind: "matmul", rows, k, n, seed };
  }).option("--size <RxKxN>", "rows, inner size, columns", sizes, [1024, 576, 1536]);
  declare<{ batch: number; tokens: number; layer: string }>(
    program,
    "stack",
    "independent sequences through a Llama of SmolLM2-135M's shape",
    ({ batch, tokens, layer, seed }) => ({
      kind: "stack",
      shape: SMOLLM2_135M,
      batch,
      tokens,
      layer: layerOf(layer),
      seed,
    }),
  )
    .option("--batch <n>", "sequences", positive, 8)
    .option("--tokens <n>", "tokens of each", positive, 128)
    .option("--layer <k>", "blocks: a number, or a percentage", "8");
  declare<{ prompt: number; candidates: number; tokens: number; layer: string }>(
    program,
    "rank",
    "candidates behind one prompt: Stratum runs the prompt once, the others every candidate whole",
    ({ prompt, candidates, tokens, layer, seed }) => ({
      kind: "rank",
      shape: SMOLLM2_135M,
      prompt,
      candidates,
      tokens,
      layer: layerOf(layer),
      seed,
    }),
  )
    .option("--prompt <n>", "tokens of the prompt", positive, 256)
    .option("--candidates <n>", "candidates", positive, 8)
    .option("--tokens <n>", "tokens of each candidate", positive, 64)
    .option("--layer <k>", "blocks: a number, or a percentage", "25%");
  return program;
}

function layerOf(text: string): number {
  const layer = resolveLayer(text, SMOLLM2_135M.layers);
  if (layer > 0) return layer;
  throw new StratumError("usage/bench", "layer 0 is the embeddings: nothing runs", "give --layer at least 1");
}

async function run(job: Job, flags: Flags): Promise<number> {
  const adapter = await sharedAdapter(flags.adapter);
  note(`${describeJob(job)} on ${adapter.name}${adapter.manifest === null ? "" : ` (${adapter.manifest})`}`);
  const entrants = ENTRANTS.flatMap((entrant) => {
    const its = entrant.job === undefined ? job : entrant.job(job);
    const wanted = entrant.name === STRATUM || flags.peers.includes(entrant.key);
    return its === null || !wanted ? [] : [{ ...entrant, job: its }];
  });
  const peers = entrants.map(({ name, module, job: its }) =>
    childPeer({
      name,
      module: new URL(`peers/${module}`, import.meta.url).href,
      job: its,
      adapter,
      timeouts: { prepare: flags.timeout * 1000, run: flags.timeout * 1000 },
    }),
  );
  const times = await interleave(peers, {
    rounds: flags.rounds,
    slowRounds: flags.slowRounds,
    slowMs: flags.slow * 1000,
    onceMs: flags.once * 1000,
    // As Stratum's kernel is timed: right after a run that is not counted.
    warm: job.kind === "matmul" ? 1 : 0,
    onStep: (name, step) => note(`  ${name}: ${step}`),
  });
  const ran = entrants.map((entrant, i) => ({ times: times[i], job: entrant.job }));
  const rows = peerRows(ran, job, STRATUM, adapter.name);
  await writeStdout(`${render(rows, job, adapter, flags)}\n`);
  // A peer's failure is a result. Stratum's own is not, nor one that differs: whose it is cannot be told from here.
  return rows.some(({ name, error, result }) => (name === STRATUM && error !== null) || result === "WRONG") ? 1 : 0;
}

function render(rows: readonly PeerRow[], job: Job, adapter: SharedAdapter, { json, markdown }: Flags): string {
  const machine = `${cpus().length} x ${cpus()[0]?.model.trim() ?? "unknown CPU"}`;
  if (json) return JSON.stringify({ adapter: adapter.name, machine, node: process.version, rows });
  const others = rows.filter((row) => row.job !== describeJob(job)).map((row) => `; ${row.name}: ${row.job}`);
  const title = `${describeJob(job)} on ${adapter.name}, ${machine}, Node ${process.version}${others.join("")}`;
  return markdown ? `${title}:\n\n${markdownTable(rows)}` : `${textTable(rows)}\n\n${title}`;
}

try {
  await program().parseAsync();
} catch (thrown) {
  reportError(thrown);
  process.exitCode = exitCodeOf(thrown);
}
