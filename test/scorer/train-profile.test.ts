import { expect, it } from "vitest";
import { createEngine } from "../../engine/model.ts";
import { profileReport } from "../../engine/profile-report.ts";
import { lasting, outcomeOf } from "../support/training.ts";

/** A training and what the profile says of it. */
async function trained(adapter: string, profile: "off" | "gpu" | "host") {
  using engine = await createEngine({ adapter, profile });
  const outcome = await outcomeOf(engine, { epochs: 2 });
  return { kept: lasting(outcome), losses: outcome.losses, report: await profileReport(engine.device) };
}

// One adapter: what differs between adapters is the engine's, not the training's.
it("a profiled training has the same losses and weights, bit for bit", async () => {
  const adapter = process.env["STRATUM_ADAPTER"] ?? "auto";
  const plain = await trained(adapter, "off");
  expect(plain.losses.length).toBeGreaterThan(5);
  const calls: number[] = [];
  for (const clock of ["gpu", "host"] as const) {
    const { kept, losses, report } = await trained(adapter, clock);
    expect(losses).toEqual(plain.losses);
    expect(kept).toEqual(plain.kept);
    expect(report).toMatchObject({ clock, untimed: 0 });
    expect(report!.scopes.map(({ scope }) => scope)).toEqual(
      expect.arrayContaining(["features", "step", "evaluation"]),
    );
    const steps = report!.kernels.find(({ kernel }) => kernel === "adamw");
    expect(steps?.calls).toBe(losses.length);
    calls.push(report!.calls);
  }
  expect(calls[0]).toBe(calls[1]);
});
