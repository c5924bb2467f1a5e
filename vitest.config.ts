import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

/** What takes longest on SwiftShader, the longest first: on two cores, one that begins last would be waited for alone. */
const LONGEST = [
  "kernels/cases",
  "cli/demo",
  "engine/parity",
  "cli/train",
  "engine/tuned",
  "cli/sweep",
  "scorer/fuzz",
  "weights/fuzz",
  "scorer/pooling",
  "engine/pooling",
  "kernels/weight-load",
].map((name) => `/test/${name}.test.ts`);

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) => {
      const at = LONGEST.findIndex((name) => moduleId.endsWith(name));
      return at < 0 ? LONGEST.length : at;
    };
    return (await super.sort(files)).sort((a, b) => place(a) - place(b));
  }
}

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // By `npm run test:long`.
    exclude: ["test/long/**", "node_modules/**"],
    // Every file that touches the GPU opens its own device: a process each, so that a crashing driver fails one file.
    pool: "forks",
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    testTimeout: 120_000,
    hookTimeout: 120_000,
    reporters: ["default", ["json", { outputFile: "test-report.json" }]],
  },
});
