import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { decodeFloats } from "../../weights/floats.ts";
import { openSafetensors } from "../../weights/safetensors.ts";

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));

export interface GoldenModel {
  readonly name: string;
  /** Where config.json and the weights lie. */
  readonly directory: string;
  /** `golden.safetensors` with `ids_i` (T) and `hidden_i` (L+1, T, D). */
  readonly golden: string;
  /** Kept outside this repository; absent from a plain checkout. */
  readonly outside: boolean;
  readonly present: boolean;
}

function model(name: string, directory: string, golden: string, outside: boolean): GoldenModel {
  return { name, directory, golden, outside, present: existsSync(directory) && existsSync(golden) };
}

/** Every folder of test/golden/families: a family's test is its folder there. */
function families(): GoldenModel[] {
  return readdirSync(path("../golden/families"))
    .sort()
    .map((name) => {
      const directory = path(`../golden/families/${name}`);
      return model(name, directory, `${directory}/golden.safetensors`, false);
    });
}

function shared(name: string, folder: string): GoldenModel {
  const directory = path(`../../../shared/${folder}/${name}`);
  return model(name, directory, `${directory}/golden.safetensors`, true);
}

/** Decoders with reference states. */
export const GOLDEN_MODELS: readonly GoldenModel[] = [
  ...families(),
  model("demo", path("../../weights/demo"), path("../golden/demo/golden.safetensors"), false),
  shared("llama-sharded", "golden/families"),
  shared("tinystories-656k", "models"),
  shared("stories260k", "models"),
];

/** A golden model of this repository. */
export function goldenModel(name: string): GoldenModel {
  const found = GOLDEN_MODELS.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no golden model ${name}`);
  return found;
}

export interface GoldenSequence {
  /** (T) */
  readonly ids: Int32Array;
  /** (T, D) each, the embeddings first, then after every block. */
  readonly layers: readonly Float32Array[];
}

/** The sequences of a golden file. */
export async function readGolden(file: string): Promise<GoldenSequence[]> {
  await using reader = await openSafetensors(file);
  const sequences: GoldenSequence[] = [];
  for (let i = 0; reader.tensors.has(`ids_${i}`); i++) {
    const ids = new Int32Array((await reader.read(`ids_${i}`)).buffer);
    const [layers, , d] = reader.info(`hidden_${i}`).shape;
    const hidden = decodeFloats(await reader.read(`hidden_${i}`), reader.info(`hidden_${i}`).dtype);
    const size = ids.length * d;
    sequences.push({
      ids,
      layers: Array.from({ length: layers }, (_, k) => hidden.subarray(k * size, (k + 1) * size)),
    });
  }
  if (sequences.length === 0) throw new Error(`${file} holds no sequence`);
  return sequences;
}
