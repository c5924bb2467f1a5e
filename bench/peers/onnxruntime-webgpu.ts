import { onnxruntimePeer } from "./onnxruntime.ts";

export const prepare = onnxruntimePeer("webgpu");
