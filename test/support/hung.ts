/** A process whose GPU never ends what it is given: it must end all the same. Prints the error's code. */
import { createEngine } from "../../engine/model.ts";
import { runKernel } from "../../engine/run-kernel.ts";
import { StratumError } from "../../errors.ts";
import { rowGather } from "../../kernels/row-gather.ts";

const kernel = rowGather({ d: 4 });
// An end that only data could bring: no compiler finds out that it never comes.
const wgsl = kernel.wgsl.replace(
  /fn main\([^{]*\{/,
  (head) => `${head}\n  loop { if (x[0] == 7.0) { break; } out[0] = x[0] + 1.0; }`,
);
try {
  using engine = await createEngine();
  const buffers = { x: new Float32Array(4), index: Uint32Array.of(0), out: new Float32Array(4) };
  await runKernel(engine.device, engine.pipelines, { ...kernel, key: "endless", wgsl }, buffers, 1);
  console.log("it ended");
} catch (thrown) {
  console.log(thrown instanceof StratumError ? thrown.code : String(thrown));
}
process.exit(3);
