/** Features for tests: seeded, ragged, and files of them with any fault. */

import { seededRandom } from "../../kernels/random.ts";
import type { FeatureArrays, FeatureSource } from "../../scorer/feature-source.ts";
import { listLength } from "../../scorer/feature-source.ts";
import { encodeFloats, type FloatDtype } from "../../weights/floats.ts";
import { type TensorData, writeSafetensors } from "../../weights/safetensors-writer.ts";

/** Random features of lists of these lengths; labels 0 and 1, every seventh NaN. */
export function randomFeatures(lengths: readonly number[], dim: number, seed = 1): FeatureArrays {
  const random = seededRandom(seed);
  const offsets = Uint32Array.from([0, ...lengths]);
  for (let b = 0; b < lengths.length; b++) offsets[b + 1] += offsets[b]!;
  const count = offsets[lengths.length]!;
  const rows = (n: number) => Float32Array.from({ length: n * dim }, () => 2 * random() - 1);
  const labels = Float32Array.from({ length: count }, (_, n) => (n % 7 === 6 ? Number.NaN : Math.floor(2 * random())));
  return { dim, inst: rows(lengths.length), resp: rows(count), labels, offsets };
}

/** The bytes of a typed array. */
export function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** The tensors of a ragged file. */
export function raggedTensors(features: FeatureArrays, dtype: FloatDtype = "F32"): TensorData[] {
  const { dim, inst, resp, labels, offsets } = features;
  const b = offsets.length - 1;
  return [
    { name: "labels", dtype: "F32", shape: [labels.length], bytes: bytesOf(labels) },
    { name: "offsets", dtype: "U32", shape: [b + 1], bytes: bytesOf(offsets) },
    { name: "inst", dtype, shape: [b, dim], bytes: encodeFloats(inst, dtype) },
    { name: "resp", dtype, shape: [labels.length, dim], bytes: encodeFloats(resp, dtype) },
  ] as TensorData[];
}

/** The tensors of a padded file: candidates at seeded places of their row, NaN everywhere else. */
export function paddedTensors(features: FeatureArrays, width: number, dtype: FloatDtype = "F32"): TensorData[] {
  const { dim, inst, resp, labels, offsets } = features;
  const b = offsets.length - 1;
  const random = seededRandom(5);
  const [rows, grades] = [new Float32Array(b * width * dim).fill(Number.NaN), new Float32Array(b * width)];
  const mask = new Float32Array(b * width);
  grades.fill(Number.POSITIVE_INFINITY);
  for (let list = 0; list < b; list++) {
    const m = listLength(features, list);
    for (let place = 0, left = m; place < width; place++) {
      if (random() * (width - place) >= left) continue;
      const n = offsets[list + 1]! - left--;
      rows.set(resp.subarray(n * dim, (n + 1) * dim), (list * width + place) * dim);
      grades[list * width + place] = labels[n]!;
      mask[list * width + place] = 1;
    }
  }
  return [
    { name: "mask", dtype: "F32", shape: [b, width], bytes: bytesOf(mask) },
    { name: "labels", dtype: "F32", shape: [b, width], bytes: bytesOf(grades) },
    { name: "inst", dtype, shape: [b, dim], bytes: encodeFloats(inst, dtype) },
    { name: "resp", dtype, shape: [b, width, dim], bytes: encodeFloats(rows, dtype) },
  ] as TensorData[];
}

/** Writes tensors, some of them replaced (null: left out). */
export async function writeTensors(
  path: string,
  tensors: readonly TensorData[],
  change: Readonly<Record<string, Partial<TensorData> | null>> = {},
): Promise<void> {
  const changed = tensors.flatMap((tensor) =>
    change[tensor.name] === null ? [] : [{ ...tensor, ...(change[tensor.name] ?? {}) }],
  );
  await writeSafetensors(path, changed);
}

/** List b's states (1 + m, D). */
export async function readList(source: FeatureSource, b: number): Promise<Float32Array> {
  const target = new Float32Array((1 + listLength(source, b)) * source.dim);
  await source.readList(b, target);
  return target;
}
