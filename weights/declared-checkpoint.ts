/** A checkpoint that exists as names, shapes and a type alone: what a model made from its configuration is drawn into. */
import { StratumError } from "../errors.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { FloatDtype } from "./floats.ts";
import { show } from "./json.ts";
import { newReadLog, type TensorInfo } from "./safetensors.ts";
import { DTYPE_BITS } from "./safetensors-header.ts";

/**
 * Tensors that are declared and hold no values: `randomCheckpoint` gives them some.
 *
 * The reading methods throw `model/no-weights`, and for a name that is not declared `model/missing-tensor`.
 *
 * @param name stands for the folder in messages
 * @param shapes by tensor name
 */
export function declaredCheckpoint(
  name: string,
  shapes: ReadonlyMap<string, readonly number[]>,
  dtype: FloatDtype,
): Checkpoint {
  const nothing = async () => undefined;
  const noValues = async (): Promise<never> => {
    throw new StratumError(
      "model/no-weights",
      `${name} is declared by its configuration; its tensors hold no values`,
      "give it random ones, or open a folder that holds weights",
    );
  };
  return {
    directory: name,
    log: newReadLog(),
    names: () => shapes.keys(),
    has: (tensor) => shapes.has(tensor),
    async info(tensor): Promise<TensorInfo> {
      const shape = shapes.get(tensor);
      if (shape === undefined) {
        throw new StratumError(
          "model/missing-tensor",
          `${name} declares no tensor ${show(tensor)}`,
          "this is a defect of Stratum: please report it",
        );
      }
      const byteLength = shape.reduce((product, size) => product * size, DTYPE_BITS[dtype] / 8);
      return { name: tensor, dtype, shape, byteLength, fileOffset: 0 };
    },
    require: nothing,
    read: noValues,
    readRows: noValues,
    readColumns: noValues,
    close: nothing,
    [Symbol.asyncDispose]: nothing,
  };
}
