/** Weights in formats that are not read: named by what a folder or a repository holds, so that nobody looks for a fault. */
import { StratumError } from "../errors.ts";

/** Names of weight files that are no safetensors: pickles of PyTorch, GGUF and GGML, TensorFlow's and Flax's. */
const OTHER = /^pytorch_model.*\.bin$|\.(pth?|gguf|ggml|h5|msgpack)$/i;

const CONVERT =
  "use a revision with safetensors, or convert: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR) in Python's transformers";
const BASE_MODEL =
  "use the model's repository with safetensors: quantised copies often name it as their base model; --weights int8 or int4 quantises on load";

const fixFor = (file: string) => (/\.gg(uf|ml)$/i.test(file) ? BASE_MODEL : CONVERT);

/** The weight files among `files` that cannot be read, sorted. */
export function otherWeights(files: readonly string[]): string[] {
  return files.filter((file) => OTHER.test(file)).sort();
}

/**
 * `model/no-weights`.
 * @param where the folder, or the model's name
 * @param lacks what was looked for there, in words
 * @param files all that is there
 */
export function noWeights(where: string, lacks: string, files: readonly string[]): StratumError {
  const others = otherWeights(files);
  const [first] = others;
  const what = first === undefined ? "" : `; ${others.slice(0, 3).join(", ")} cannot be read`;
  return new StratumError(
    "model/no-weights",
    `${where} has ${lacks}${what}`,
    first === undefined ? "download the model's weights into the folder" : fixFor(first),
  );
}

/** `model/not-a-directory`: a file where a model's folder should be, GGUF's own among them. */
export function notADirectory(path: string, cause: unknown): StratumError {
  const [other] = otherWeights([path]);
  return new StratumError(
    "model/not-a-directory",
    `${path} is not a folder${other === undefined ? "" : ", and weights of this format cannot be read"}`,
    other === undefined ? "pass the folder that holds config.json and the weights, not a file in it" : fixFor(other),
    cause,
  );
}
