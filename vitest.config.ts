import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // By `npm run test:long`.
    exclude: ["test/long/**", "node_modules/**"],
    // Every file that touches the GPU opens its own device: a process each, so that a crashing driver fails one file.
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    reporters: ["default", ["json", { outputFile: "test-report.json" }]],
  },
});
