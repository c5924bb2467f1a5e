/**
 * Mixed ranking for as long as is asked for: short lists and long ones, cut and grown for, some that fail, by cosine and
 * by a scorer, with rankers made anew every time and a device that is lost now and then. What is measured after every
 * round must not rise; what is ranked must stay the same.
 */
import { loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { seededRandom } from "../../kernels/random.ts";
import { type Fields, type ListLine, parseList } from "../../scorer/lists.ts";
import { createRanker, type RankOptions } from "../../scorer/rank.ts";
import { initialWeights } from "../../scorer/scorer-spec.ts";
import { writeTinyTextModel } from "./cli.ts";
import { collect, gpuObjects, type Memory, memoryNow } from "./memory.ts";

/** What holds after rounds. */
export interface SoakSample extends Memory {
  readonly seconds: number;
  /** Lists that were ranked since the first. */
  readonly lists: number;
  /** Since the last sample, of one list on average: what passed, and what this process computed meanwhile. */
  readonly msPerList: number;
  readonly cpuMsPerList: number;
}

export interface Soak {
  readonly samples: readonly SoakSample[];
  readonly rounds: number;
  readonly lists: number;
  readonly losses: number;
  /** Rounds whose rankings were not those of the first. */
  readonly different: number;
  /** Bytes and buffers on the GPU while no ranker is open, the weights', each different one once; one is right. */
  readonly live: readonly string[];
  /** WebGPU's objects that were alive when the kernels had been made, and at the end. */
  readonly gpuObjects: readonly [string, string];
}

const WORDS = "the of pan fire water lid number answer very large and why how it is not safe to do so".split(" ");

/** Lists of every kind; the same for a seed. */
function mixedLists(seed: number, count: number): ListLine[] {
  const random = seededRandom(seed);
  const below = (n: number) => Math.floor(random() * n);
  const words = (n: number) => Array.from({ length: n }, () => WORDS[below(WORDS.length)]).join(" ");
  return Array.from({ length: count }, (_, i): ListLine => {
    const kind = below(8);
    const record: Fields = {
      id: `list-${i}`,
      instruction: words(kind === 0 ? 60 : 1 + below(12)),
      // Kind 1 does not fit the model, and is an error in its place; kind 2 is cut over several batches.
      candidates: Array.from({ length: kind === 2 ? 24 : 1 + below(6) }, () => words(kind === 1 ? 400 : 1 + below(20))),
    };
    const list = parseList(record, String(i + 1));
    return { kind: "list", line: i + 1, id: list.id, list };
  });
}

/** However slow the adapter is. */
const LEAST_ROUNDS = 4;
/** Samples of a run, at most: they lie in the memory that they measure, and each costs two collections. */
const MOST_SAMPLES = 400;

export interface SoakOptions {
  /** Whether the device is lost in a round; default never. */
  readonly losesIn?: (round: number) => boolean;
  readonly onSample?: (sample: SoakSample) => void;
  /** Is called after every round: what a test leaks on purpose. */
  readonly leak?: (gpu: GPUDevice) => void;
}

/** Ranks for so many seconds. */
export async function soak(seconds: number, { losesIn, onSample, leak }: SoakOptions = {}): Promise<Soak> {
  await using tiny = await writeTinyTextModel({ layers: 1 });
  using engine = await createEngine({ faults: "" });
  const { device } = engine;
  await using model = await loadModel(engine, tiny.directory);
  const { hiddenSize: dim } = model.files.spec.config;
  const spec = { head: "pointwise", dim, width: 8, heads: 1, ffn: 16, tau: 0.2 } as const;
  const scorer = {
    ...{ spec, weights: initialWeights(spec, 1), base: null, layer: 1, pooling: null, system: null },
    ...{ standardise: null, training: {} },
  };
  const ways: readonly RankOptions[] = [
    { layer: 1 },
    { layer: 1, batchTokens: 300 },
    { layer: 1, scorer },
    { layer: 1, pooling: "mean" },
  ];
  const lines = mixedLists(7, 32);
  async function* source(): AsyncGenerator<ListLine> {
    yield* lines;
  }
  const live = new Set<string>();
  const samples: SoakSample[] = [];
  let [lists, different, round] = [0, 0, 0];
  let wanted: string | undefined;
  let objectsBefore = "";
  const begin = performance.now();
  const secondsNow = () => (performance.now() - begin) / 1000;

  async function rankAll(loses: boolean): Promise<void> {
    const records: unknown[] = [];
    for (const options of ways) {
      using ranker = await createRanker(model, options);
      for await (const { record } of ranker.rank(source())) {
        if (loses && records.length === 40) device.gpu.destroy();
        records.push(record);
      }
    }
    const text = JSON.stringify(records);
    wanted ??= text;
    if (text !== wanted) different++;
    lists += records.length;
    live.add(`${device.liveBytes} bytes in ${device.liveBuffers.length} buffers`);
  }

  for (let due = 0; round < LEAST_ROUNDS || secondsNow() < seconds; due += seconds / MOST_SAMPLES) {
    const [from, cpu, before] = [performance.now(), process.cpuUsage(), lists];
    do {
      await rankAll(losesIn?.(round) ?? false);
      leak?.(device.gpu);
      round++;
    } while (secondsNow() < due);
    const msPerList = (performance.now() - from) / (lists - before);
    const { user, system } = process.cpuUsage(cpu);
    const cpuMsPerList = (user + system) / 1000 / (lists - before);
    await collect();
    // What was just collected goes with the end of a submission.
    await device.freed();
    const sample = { ...memoryNow(), seconds: secondsNow(), lists, msPerList, cpuMsPerList };
    samples.push(sample);
    onSample?.(sample);
    if (samples.length === 1) objectsBefore = gpuObjects();
  }
  return {
    ...{ samples, rounds: round, lists, losses: device.losses, different },
    ...{ live: [...live], gpuObjects: [objectsBefore, gpuObjects()] },
  };
}
