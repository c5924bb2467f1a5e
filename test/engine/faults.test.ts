/** Faults of the GPU: what was under way is done again, and gives the bits of a run that nothing disturbed. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { Batch, SequenceGroup } from "../../engine/batch.ts";
import { Device } from "../../engine/device.ts";
import { FAULT_KINDS, parseFaults } from "../../engine/faults.ts";
import { hiddenStates, loadModel, openRunnerRoom, type RunnerRoom } from "../../engine/hidden-states.ts";
import { createEngine } from "../../engine/model.ts";
import { MOST_LOSSES, overLosses } from "../../engine/room.ts";
import { type Job, streamJobs } from "../../engine/stream.ts";
import { failing } from "../support/failing.ts";
import { randomGroups } from "../support/states.ts";
import { type TinyModel, writeTinyModel } from "../support/tiny-model.ts";

let tiny: TinyModel;
/** The states without a fault, by `group/index`. */
let undisturbed: ReadonlyMap<string, Float32Array>;
let blockUndisturbed: ReadonlyMap<string, Float32Array>;
/** Every device compiles its kernels anew: most faults are looked at where there are the fewest, at layer 0. */
const BLOCK = 1;
const BATCH = 256;

beforeAll(async () => {
  tiny = await writeTinyModel({ layers: 1, seed: 5 });
  undisturbed = (await run(undefined)).states;
  blockUndisturbed = (await run(undefined, { layer: BLOCK })).states;
});
afterAll(() => tiny[Symbol.asyncDispose]());

const groups = randomGroups(11, 24, 50);

interface Run {
  readonly states: ReadonlyMap<string, Float32Array>;
  readonly notes: readonly string[];
  readonly budget: number;
  readonly maxBudget: number;
  readonly losses: number;
  /** Working buffers. */
  readonly plan: number;
}

/** Streams groups through a model on a device that suffers faults. */
async function run(
  faults: string | undefined,
  { layer = 0, batchTokens = BATCH as number | null, lists = groups as readonly SequenceGroup[] } = {},
): Promise<Run> {
  const notes: string[] = [];
  using engine = await createEngine({ faults: faults ?? "", onNote: (text) => notes.push(text) });
  await using model = await loadModel(engine, tiny.directory, { layer });
  using room = await openRunnerRoom(model, {
    layers: [layer],
    output: "pooled",
    batchTokens: batchTokens ?? undefined,
  });
  const states = new Map<string, Float32Array>();
  async function* jobs(): AsyncGenerator<Job<number>> {
    for (const [item, group] of lists.entries()) yield { item, group };
  }
  const each = async (batch: Batch, members: readonly Job<number>[], { runner }: RunnerRoom["current"]) => {
    const flat = await runner.pooledStates(batch);
    const size = flat.length / batch.sequences.length;
    for (const [s, { group, index }] of batch.sequences.entries())
      states.set(`${members[group]!.item}/${index}`, flat.slice(s * size, (s + 1) * size));
  };
  const order: number[] = [];
  for await (const item of streamJobs(jobs(), room, each)) order.push(item);
  expect(order).toEqual(lists.map((_, item) => item));
  const { budget, maxBudget, plan } = room.current.runner;
  // What a fault has ended leaves nothing behind: the device holds the weights and one set of working buffers.
  expect(engine.device.liveBytes).toBe(room.current.runner.bytes);
  return { states, notes, budget, maxBudget, losses: engine.device.losses, plan: plan.length };
}

const notedLoss = expect.stringMatching(/^the GPU device was lost \(destroyed\).*; it is opened again/);

describe("a device that is lost", () => {
  it.each([
    ["in its first batch", "device-lost@1", 1],
    ["while the states come back", "device-lost@2", 1],
    ["in the middle", "device-lost@5", 1],
    ["twice", "device-lost@2,device-lost@6", 2],
  ])("%s: the batch is repeated on another, with the same bits", async (_, faults, losses) => {
    const found = await run(faults);
    expect(found.states).toEqual(undisturbed);
    expect([found.losses, found.notes]).toEqual([losses, Array.from({ length: losses }, () => notedLoss)]);
  });

  it("with weights on it: they are loaded again, with the same bits", async () => {
    const found = await run("device-lost@3", { layer: BLOCK });
    expect(found.states).toEqual(blockUndisturbed);
    expect([found.losses, found.notes]).toEqual([1, [notedLoss]]);
  });

  it("again and again on the same work is an error, after so many tries", async () => {
    await expect(run("device-lost@3+")).rejects.toThrow(
      expect.objectContaining({
        code: "device/lost",
        message: expect.stringContaining(`${MOST_LOSSES} times in a row`),
      }),
    );
  });

  it("gives the work to two rooms of one model, each from where it was", async () => {
    using engine = await createEngine({ faults: "device-lost@3" });
    await using model = await loadModel(engine, tiny.directory, { layer: 0 });
    const sequences = groups.flatMap((group) => group.sequences);
    const both = await Promise.all([0, 1].map(() => hiddenStates(model, sequences)));
    const wanted = groups.flatMap((group, g) => group.sequences.map((_, i) => undisturbed.get(`${g}/${i}`)));
    expect(both).toEqual([wanted, wanted]);
    expect([engine.device.losses, engine.device.generation]).toEqual([1, 2]);
  });

  it("gets shorter dispatches: a driver's watchdog may have ended it", async () => {
    using engine = await createEngine({ faults: "device-lost@1" });
    await using model = await loadModel(engine, tiny.directory, { layer: 0 });
    expect(engine.device.pace).toBe(1);
    await hiddenStates(model, [Int32Array.of(1, 2)]);
    expect(engine.device.pace).toBe(0.25);
  });

  it("is an error where the adapter gives no other", async () => {
    const lost = Promise.resolve({ reason: "unknown", message: "it went away" });
    const gpu = Object.assign(new EventTarget(), { lost, destroy: () => undefined }) as unknown as GPUDevice;
    const info = { limits: {}, name: "none" } as unknown as Device["info"];
    const again = () => Promise.reject(new Error("there is another in its place"));
    const device = new Device(gpu, {} as GPU, info, { again });
    await lost;
    // The pauses before the second and the third try.
    vi.useFakeTimers();
    const trying = overLosses(device, async () => device.check()).catch((thrown: unknown) => thrown);
    await vi.advanceTimersByTimeAsync(10_000);
    vi.useRealTimers();
    expect(await trying).toEqual(
      expect.objectContaining({
        code: "device/lost",
        message: expect.stringMatching(/it went away; none gives no other: there is another in its place$/),
      }),
    );
  });

  it("makes what lay on it unusable, by name: nothing of it reaches the other", async () => {
    using engine = await createEngine({ faults: "" });
    const { device } = engine;
    const buffer = device.createBuffer("old", 16, "storage");
    device.gpu.destroy();
    await device.gpu.lost;
    await device.renew(1);
    expect([device.generation, device.liveBytes]).toEqual([2, 0]);
    expect(() => device.write(buffer, new Uint32Array(4))).toThrow(expect.objectContaining({ code: "device/lost" }));
    await device.idle();
    // A renewal that another caller had done already is none.
    await device.renew(1);
    expect(device.generation).toBe(2);
  });
});

/** Buffers and textures before the working buffers: those of the weights. */
const WEIGHTS = 9;

describe("memory that the GPU has not", () => {
  it("for the working buffers: half as many tokens a batch, said, with the same bits", async () => {
    const found = await run(`out-of-memory@${WEIGHTS + 1}`, { layer: BLOCK });
    expect([found.budget, found.maxBudget, found.losses]).toEqual([BATCH / 2, BATCH / 2, 0]);
    expect(found.notes).toEqual([expect.stringMatching(/out of memory: 'x': .* at most 128 tokens .*\(256 before\)$/)]);
    expect(found.states).toEqual(blockUndisturbed);
  });

  it("for a submission: the same, on a device that is opened again", async () => {
    const found = await run("submit-out-of-memory@4");
    expect([found.budget, found.losses, found.notes.length]).toEqual([BATCH / 2, 0, 1]);
    expect(found.states).toEqual(undisturbed);
  });

  it("for a list that a batch grows for: the list is cut, and has the same bits", async () => {
    const prompt = Array.from({ length: 60 }, (_, i) => i % 50);
    const long = Array.from({ length: 40 }, (_, i) => Int32Array.from([...prompt, i, ...prompt.slice(0, 30)]));
    const lists = [{ sequences: [Int32Array.from(prompt), ...long], anchored: true }];
    const whole = await run(undefined, { batchTokens: null, lists });
    expect(whole.budget).toBeGreaterThan(1024);
    // The first buffer of the growth; the first set had room.
    const probe = await run(undefined, { batchTokens: null, lists: [] });
    const found = await run(`out-of-memory@${probe.plan + 1}`, { batchTokens: null, lists });
    expect(found.notes).toHaveLength(1);
    // Half of it would be less than there was memory for.
    expect([found.budget, found.maxBudget]).toEqual([1024, 1024]);
    expect(found.states).toEqual(whole.states);
  });

  it("for a sequence that half a batch cannot hold: memory is asked for again, and the sequence is computed", async () => {
    const long = { sequences: [Int32Array.from({ length: 200 }, (_, i) => i % 50)] };
    const lists = [...groups.slice(0, 3), long, ...groups.slice(3)];
    const whole = await run(undefined, { lists });
    const found = await run("submit-out-of-memory@1", { lists });
    expect([found.notes.length, found.states]).toEqual([1, whole.states]);
    for (const [key, states] of undisturbed) {
      const [group, index] = key.split("/").map(Number) as [number, number];
      expect(found.states.get(`${group < 3 ? group : group + 1}/${index}`)).toEqual(states);
    }
    // An error of the machine, not of the list: what a list comes to does not hang on the memory of a moment.
    const short = run("submit-out-of-memory@1,submit-out-of-memory@2,submit-out-of-memory@3", { lists });
    await expect(short).rejects.toThrow(failing("memory/out-of-memory"));
  });

  it.each([
    ["weights", "out-of-memory@3", BLOCK],
    ["the smallest batch", "out-of-memory@1+", 0],
  ])("for %s is an error", async (_, faults, layer) => {
    await expect(run(faults, { layer })).rejects.toThrow(failing("memory/out-of-memory"));
  });
});

describe("faults on purpose", () => {
  it("are counted by kind, once or from there on", () => {
    const faults = parseFaults("device-lost@2, hang@4+,out-of-memory@3");
    expect(Array.from({ length: 6 }, () => faults.submission())).toEqual([
      ...[null, "device-lost", null],
      ...["hang", "hang", "hang"],
    ]);
    expect(Array.from({ length: 4 }, () => faults.allocation())).toEqual([true, true, false, true]);
  });

  it.each(["", "device-lost", "device-lost@0", "lost@3", "hang@1++", "hang@1,,hang@2", "hang@1.5"])(
    "'%s' names none",
    (text) => {
      expect(() => parseFaults(text)).toThrow(
        expect.objectContaining({ code: "usage/faults", fix: expect.stringContaining(FAULT_KINDS.join(", ")) }),
      );
    },
  );
});
