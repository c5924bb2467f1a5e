/** onnxruntime-node, either provider. */
import { InferenceSession, Tensor } from "onnxruntime-node";
import type { Job } from "../jobs.ts";
import { onnxJob } from "../onnx-jobs.ts";
import { CPU, type Prepared } from "../protocol.ts";

/** A peer's `prepare` with this execution provider. */
export function onnxruntimePeer(provider: "cpu" | "webgpu") {
  return async (job: Job): Promise<Prepared> => {
    const { model, input, result, end } = onnxJob(job);
    const session = await InferenceSession.create(model, { executionProviders: [provider], logSeverityLevel: 3 });
    const feeds = { x: new Tensor("float32", input.values, [...input.dims]) };
    return {
      adapter: provider === "cpu" ? CPU : null,
      async run(full) {
        const begin = performance.now();
        const fetched = await session.run(feeds, [full ? result : end]);
        const ms = performance.now() - begin;
        return { ms, output: full ? Float32Array.from(fetched[result].data as Float32Array) : null };
      },
    };
  };
}
