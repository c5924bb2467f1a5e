/**
 * Mixed ranking for as long as is asked for: short lists and long ones, cut and grown for, some that fail, by cosine and
 * by a scorer, with rankers made anew every time and a device that is lost now and then. What is measured after every
 * round must not rise; what is ranked must stay the same.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { loadModel } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { seededRandom } from "../../kernels/random.ts";
import { type Fields, type ListLine, parseList } from "../../scorer/lists.ts";
import { createRanker, type RankOptions } from "../../scorer/rank.ts";
import { initialWeights } from "../../scorer/scorer-spec.ts";
import { writeTinyTextModel } from "./cli.ts";

/** What holds after a round. */
export interface SoakSample {
  readonly seconds: number;
  /** Resident bytes of this process, after a collection. */
  readonly rss: number;
  /** Of it, what JavaScript holds, in its heap and outside. */
  readonly held: number;
  /** Bytes of buffers and textures on the GPU while no ranker is open: the weights'. */
  readonly live: number;
  readonly buffers: number;
  /** Of the round, of one list on average: what passed, and what this process computed meanwhile. */
  readonly msPerList: number;
  readonly cpuMsPerList: number;
  /** The device was lost in this round: its time tells nothing. */
  readonly lost: boolean;
}

export interface Soak {
  readonly samples: readonly SoakSample[];
  readonly lists: number;
  readonly losses: number;
  /** Rounds whose rankings were not those of the first. */
  readonly different: number;
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

/**
 * Ranks for so many seconds.
 * @param losesIn whether the device is lost in a round
 */
export async function soak(
  seconds: number,
  losesIn: (round: number, seconds: number) => boolean,
  onSample?: (sample: SoakSample) => void,
): Promise<Soak> {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  await using tiny = await writeTinyTextModel({ layers: 1 });
  using engine = await createEngine({ faults: "" });
  await using model = await loadModel(engine, tiny.directory);
  const { hiddenSize: dim } = model.files.spec.config;
  const spec = { head: "pointwise", dim, width: 8, heads: 1, ffn: 16, tau: 0.2 } as const;
  const scorer = {
    ...{ spec, weights: initialWeights(spec, 1), base: null, layer: 1, pooling: null, system: null },
    ...{ standardise: null, training: {} },
  };
  const ways: readonly RankOptions[] = [{ layer: 1 }, { layer: 1, batchTokens: 300 }, { layer: 1, scorer }];
  const lines = mixedLists(7, 32);
  async function* source(): AsyncGenerator<ListLine> {
    yield* lines;
  }
  const samples: SoakSample[] = [];
  let [lists, different] = [0, 0];
  let wanted: string | undefined;
  const begin = performance.now();
  for (let round = 0; round < LEAST_ROUNDS || performance.now() - begin < 1000 * seconds; round++) {
    const lost = losesIn(round, (performance.now() - begin) / 1000);
    const records: unknown[] = [];
    const [from, cpu] = [performance.now(), process.cpuUsage()];
    for (const options of ways) {
      using ranker = await createRanker(model, options);
      for await (const { record } of ranker.rank(source())) {
        if (lost && records.length === 40) engine.device.gpu.destroy();
        records.push(record);
      }
    }
    const msPerList = (performance.now() - from) / records.length;
    const { user, system } = process.cpuUsage(cpu);
    const text = JSON.stringify(records);
    wanted ??= text;
    if (text !== wanted) different++;
    lists += records.length;
    collect();
    const { liveBytes: live, liveBuffers } = engine.device;
    const { rss, heapUsed, external } = process.memoryUsage();
    const at = { seconds: (performance.now() - begin) / 1000, lost };
    const cpuMsPerList = (user + system) / 1000 / records.length;
    const sample = {
      ...at,
      rss,
      held: heapUsed + external,
      live,
      buffers: liveBuffers.length,
      msPerList,
      cpuMsPerList,
    };
    samples.push(sample);
    onSample?.(sample);
  }
  return { samples, lists, losses: engine.device.losses, different };
}
