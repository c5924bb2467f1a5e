/** Builds ONNX graphs of plain operators, float32. */
import { create, toBinary } from "@bufbuild/protobuf";
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  type TensorProto,
  TensorProto_DataType,
  TensorProtoSchema,
  TensorShapeProto_DimensionSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from "onnx-buf";

/** Of the standard domain: reductions take their axes as an input from 18 on. */
const OPSET = 18;
const IR_VERSION = 9n;

/** A value of the graph, by name. */
export type Value = string;

export interface OnnxGraph {
  /** Declares an input. */
  input(name: string, dims: readonly number[]): Value;
  /** Declares a value as an output, under its name. */
  output(value: Value, dims: readonly number[]): void;
  constant(dims: readonly number[], values: Float32Array): Value;
  /** A vector of whole numbers: shapes, axes, starts and ends. */
  integers(values: readonly number[]): Value;
  /**
   * Adds an operator with one output.
   * @param attributes whole numbers, or lists of them
   * @param name of the output, where it matters
   */
  node(
    operator: string,
    inputs: readonly Value[],
    attributes?: Readonly<Record<string, number | readonly number[]>>,
    name?: string,
  ): Value;
  /** The model as a file holds it. */
  bytes(): Uint8Array<ArrayBuffer>;
}

function attribute(name: string, value: number | readonly number[]) {
  return typeof value === "number"
    ? create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INT, i: BigInt(value) })
    : create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INTS, ints: value.map(BigInt) });
}

function dimension(size: number) {
  return create(TensorShapeProto_DimensionSchema, { value: { case: "dimValue", value: BigInt(size) } });
}

function typed(name: string, dims: readonly number[]): ValueInfoProto {
  return create(ValueInfoProtoSchema, {
    name,
    type: {
      value: {
        case: "tensorType",
        value: {
          elemType: TensorProto_DataType.FLOAT,
          shape: { dim: dims.map(dimension) },
        },
      },
    },
  });
}

/** An empty graph. */
export function onnxGraph(): OnnxGraph {
  const nodes: NodeProto[] = [];
  const initializers: TensorProto[] = [];
  const inputs: ValueInfoProto[] = [];
  const outputs: ValueInfoProto[] = [];
  const known = new Map<string, Value>();
  const keep = (dims: readonly number[], dataType: TensorProto_DataType, rawData: Uint8Array<ArrayBuffer>): Value => {
    const name = `c${initializers.length}`;
    initializers.push(create(TensorProtoSchema, { name, dims: dims.map(BigInt), dataType, rawData }));
    return name;
  };
  return {
    input(name, dims) {
      inputs.push(typed(name, dims));
      return name;
    },
    output(value, dims) {
      outputs.push(typed(value, dims));
    },
    constant(dims, { buffer, byteOffset, byteLength }) {
      return keep(dims, TensorProto_DataType.FLOAT, new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength));
    },
    integers(values) {
      const key = values.join();
      const value =
        known.get(key) ??
        keep(
          [values.length],
          TensorProto_DataType.INT64,
          new Uint8Array(BigInt64Array.from(values, (v) => BigInt(v)).buffer),
        );
      known.set(key, value);
      return value;
    },
    node(operator, from, attributes = {}, name = `v${nodes.length}`) {
      nodes.push(
        create(NodeProtoSchema, {
          opType: operator,
          input: [...from],
          output: [name],
          attribute: Object.entries(attributes).map(([key, value]) => attribute(key, value)),
        }),
      );
      return name;
    },
    bytes() {
      const graph = create(GraphProtoSchema, {
        name: "peer",
        node: nodes,
        initializer: initializers,
        input: inputs,
        output: outputs,
      });
      const model = create(ModelProtoSchema, {
        irVersion: IR_VERSION,
        producerName: "stratum",
        graph,
        opsetImport: [create(OperatorSetIdProtoSchema, { domain: "", version: BigInt(OPSET) })],
      });
      return toBinary(ModelProtoSchema, model) as Uint8Array<ArrayBuffer>;
    },
  };
}
