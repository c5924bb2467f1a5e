/** `stratum doctor`: a verdict from real dispatches. */
import { describe, expect, it } from "vitest";
import { errorCodes, stratum } from "../support/cli.ts";

interface Diagnosis {
  readonly verdict: string;
  readonly error: { readonly code: string; readonly message: string; readonly fix: string } | null;
  readonly adapter: Readonly<Record<string, unknown>> | null;
  readonly checks: readonly { kernel: string; ok: boolean; error: number; milliseconds: number }[];
}

describe("doctor", () => {
  it("finds the adapter of these tests healthy, kernel by kernel", async () => {
    const run = await stratum(["doctor", "--json"]);
    expect(run.code, run.stdout + run.stderr).toBe(0);
    const found = JSON.parse(run.stdout) as Diagnosis;
    expect(found).toMatchObject({ verdict: "healthy", error: null, platform: `${process.platform} ${process.arch}` });
    expect(found.adapter).toMatchObject({
      name: expect.stringMatching(/./),
      source: expect.stringMatching(/^(system|embedded)$/),
      software: expect.any(Boolean),
      limits: { maxBufferSize: expect.any(Number) },
    });
    const kernels = new Set(found.checks.map(({ kernel }) => kernel));
    expect([...kernels].sort()).toEqual(expect.arrayContaining(["attention", "cosine", "norm", "rope", "rowGather"]));
    // A matrix product for each stored type of weights.
    expect(found.checks.filter(({ kernel }) => kernel.startsWith("matmul")).length).toBeGreaterThanOrEqual(3);
    for (const check of found.checks) {
      expect(check, check.kernel).toMatchObject({ ok: true, milliseconds: expect.any(Number) });
      expect(check.error).toBeLessThanOrEqual(1e-4);
    }
  });

  it("calls an adapter that is not there broken, with code and fix, and exits with 3", async () => {
    const run = await stratum(["doctor", "--adapter", "nonsense", "--json"]);
    expect([run.code, errorCodes(run.stderr)]).toEqual([3, []]);
    const found = JSON.parse(run.stdout) as Diagnosis;
    expect(found).toMatchObject({ verdict: "broken", adapter: null, checks: [] });
    expect(found.error).toMatchObject({ code: "adapter/none", message: expect.stringContaining("nonsense") });
    expect(found.error?.fix).toMatch(/./);
  });

  it("says so in words, without --json", async () => {
    const run = await stratum(["doctor", "--adapter", "nonsense"]);
    expect(run.code).toBe(3);
    expect(run.stdout).toMatch(/broken: adapter\/none.*\n {2}fix: /);
    expect(run.stdout + run.stderr).not.toMatch(/^\s+at .+[:(]/m);
  });
});
