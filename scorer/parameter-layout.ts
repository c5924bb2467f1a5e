/** Where a scorer's parameters lie in one flat buffer: weights, gradients and AdamW's moments alike. */
import { elementCount, type ParameterShape, parameterShapes, type ScorerSpec } from "./scorer-spec.ts";

/** A parameter's place in the flat buffers, in floats. */
export interface ParameterSlot extends ParameterShape {
  readonly offset: number;
  readonly count: number;
}

export interface ParameterLayout {
  readonly slots: readonly ParameterSlot[];
  /** Floats of a flat buffer, the gaps between parameters included. */
  readonly count: number;
}

/** Floats: a binding may begin at multiples of 256 bytes. */
const ALIGN = 64;

/** All parameters in one buffer, so that one dispatch updates them. */
export function parameterLayout(spec: ScorerSpec): ParameterLayout {
  let offset = 0;
  const slots = parameterShapes(spec).map((parameter) => {
    const count = elementCount(parameter.shape);
    const slot = { ...parameter, offset, count };
    offset += Math.ceil(count / ALIGN) * ALIGN;
    return slot;
  });
  return { slots, count: offset };
}

/** Parameters by name as one flat array. */
export function flatten(
  layout: ParameterLayout,
  tensors: ReadonlyMap<string, Float32Array>,
): Float32Array<ArrayBuffer> {
  const flat = new Float32Array(layout.count);
  for (const { name, offset, count } of layout.slots) {
    const values = tensors.get(name);
    if (values?.length !== count) throw new Error(`parameter ${name} has ${values?.length} of ${count} values`);
    flat.set(values, offset);
  }
  return flat;
}

/** A flat array as parameters by name. */
export function unflatten({ slots }: ParameterLayout, flat: Float32Array): Map<string, Float32Array<ArrayBuffer>> {
  return new Map(slots.map(({ name, offset, count }) => [name, flat.slice(offset, offset + count)]));
}
