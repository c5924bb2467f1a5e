/** A scorer's parameters in files of safetensors, under PyTorch's names. */
import { StratumError } from "../errors.ts";
import { decodeFloats, encodeFloats, isFloatDtype } from "../weights/floats.ts";
import { show } from "../weights/json.ts";
import { openSafetensors, type SafetensorsFile } from "../weights/safetensors.ts";
import { type TensorData, writeSafetensors } from "../weights/safetensors-writer.ts";
import { elementCount, type ParameterShape, parameterShapes, type ScorerSpec } from "./scorer-spec.ts";

/** Tensors to be written, checked. @throws {StratumError} `scorer/missing-tensor`, `scorer/tensor-shape`, `scorer/not-finite` */
export function tensorsOf(shapes: readonly ParameterShape[], values: ReadonlyMap<string, Float32Array>): TensorData[] {
  return shapes.map(({ name, shape }): TensorData => {
    const tensor = values.get(name);
    const count = elementCount(shape);
    if (tensor === undefined) throw missingTensor("the scorer to be saved", name);
    if (tensor.length !== count) throw wrongShape("the scorer to be saved", name, [tensor.length], shape);
    checkValues("the scorer to be saved", name, tensor);
    return { name, dtype: "F32", shape, bytes: encodeFloats(tensor, "F32") };
  });
}

/**
 * First weights from a file (`--init`): its tensors under the names of `parameterShapes`, or under those with `init.` in
 * front; other tensors are left alone.
 * @throws {StratumError} `scorer/missing-tensor`, `scorer/tensor-shape`, `scorer/tensor-dtype`, `scorer/not-finite`,
 *   `scorer/missing-file`, `safetensors/...`, `file/...`
 */
export async function loadWeights(path: string, spec: ScorerSpec): Promise<Map<string, Float32Array<ArrayBuffer>>> {
  await using file = await openWeights(path);
  const shapes = parameterShapes(spec);
  const plain = shapes.some(({ name }) => file.tensors.has(name));
  const prefixed = !plain && shapes.some(({ name }) => file.tensors.has(`init.${name}`));
  return await readParameters(file, shapes, prefixed ? "init." : "");
}

function openWeights(path: string): Promise<SafetensorsFile> {
  return openSafetensors(path).catch((cause: unknown) => {
    if (!(cause instanceof StratumError) || cause.code !== "model/file-missing") throw cause;
    throw new StratumError("scorer/missing-file", cause.message, "check the path of the weights", cause);
  });
}

/** What sizes a file of weights has, read off its tensors; heads and tau leave no trace in them. */
export type WeightSizes = Pick<ScorerSpec, "head" | "dim" | "width" | "ffn">;

/**
 * The sizes of the weights that {@link loadWeights} would read.
 * @throws {StratumError} `scorer/missing-tensor`, `scorer/missing-file`, `safetensors/...`
 */
export async function inspectWeights(path: string): Promise<WeightSizes> {
  await using file = await openWeights(path);
  const shapeOf = (name: string) => file.tensors.get(name)?.shape ?? file.tensors.get(`init.${name}`)?.shape;
  const proj = shapeOf("proj.weight");
  const [listwise, pointwise] = ["encoder.layers.0.linear1.weight", "linear1.weight"].map(shapeOf);
  if (proj === undefined) throw missingTensor(path, "proj.weight");
  const ffn = (listwise ?? pointwise)?.[0];
  if (ffn === undefined) throw missingTensor(path, "encoder.layers.0.linear1.weight");
  return { head: listwise === undefined ? "pointwise" : "listwise", width: proj[0] ?? 0, dim: proj[1] ?? 0, ffn };
}

/** Writes weights alone, under PyTorch's names, without `__metadata__`. @throws {StratumError} as {@link saveScorer} */
export async function saveWeights(
  path: string,
  spec: ScorerSpec,
  weights: ReadonlyMap<string, Float32Array>,
): Promise<void> {
  await writeSafetensors(path, tensorsOf(parameterShapes(spec), weights));
}

/** Tensors as f32, checked, by their names without the prefix. */
export async function readParameters(
  file: SafetensorsFile,
  shapes: readonly ParameterShape[],
  prefix: string,
): Promise<Map<string, Float32Array<ArrayBuffer>>> {
  const values = new Map<string, Float32Array<ArrayBuffer>>();
  for (const { name: plain, shape } of shapes) {
    const name = prefix + plain;
    const info = file.tensors.get(name);
    if (info === undefined) throw missingTensor(file.path, name);
    if (info.shape.length !== shape.length || shape.some((length, i) => length !== info.shape[i])) {
      throw wrongShape(file.path, name, info.shape, shape);
    }
    if (!isFloatDtype(info.dtype)) {
      const what = `${file.path}: tensor '${name}' is ${info.dtype}`;
      throw new StratumError("scorer/tensor-dtype", what, "store a scorer's weights as F32");
    }
    const tensor = decodeFloats(await file.read(name), info.dtype);
    checkValues(file.path, name, tensor);
    values.set(plain, tensor);
  }
  return values;
}

/** An instruction's scale may be 0: a learned vector then stands in its place (`anchor`). A response's may not. */
export function checkValues(where: string, name: string, values: Float32Array): void {
  const [scale, positive] = [name.endsWith(".scale"), name === "standardise.resp.scale"];
  const at = values.findIndex((value) => !Number.isFinite(value) || (scale && value < 0) || (positive && value === 0));
  if (at < 0) return;
  throw new StratumError(
    Number.isFinite(values[at]) ? "scorer/bad-scale" : "scorer/not-finite",
    `${where}: tensor '${name}' holds ${values[at]} at ${at}`,
    "the training diverged or the file is damaged: train again, with a lower --lr",
  );
}

function missingTensor(where: string, name: string): StratumError {
  const fix = "the file belongs to a scorer of another head, or is no scorer: check --head and the path";
  return new StratumError("scorer/missing-tensor", `${where} has no tensor '${name}'`, fix);
}

function wrongShape(where: string, name: string, found: readonly number[], shape: readonly number[]): StratumError {
  return new StratumError(
    "scorer/tensor-shape",
    `${where}: tensor '${name}' has shape ${show(found)}; these sizes need ${show(shape)}`,
    "give the sizes that the weights were made for (dim, width, ffn)",
  );
}
