/** What is seen of states, on lists small enough to work out by hand. */
import { describe, expect, it } from "vitest";
import { arraySource, type FeatureSource } from "../../scorer/feature-source.ts";
import { statesSchema } from "../../scorer/states-data.ts";
import { lookAtStates, mapLayers, quartiles } from "../../scorer/states-look.ts";
import { randomFeatures } from "../support/features.ts";

/** Two lists of two, in two dimensions; a safe response points along x, the other along y, the second list 10 further. */
const labels = Float32Array.of(1, 0, 0, 1);
const offsets = Uint32Array.of(0, 2, 4);
const source = (inst: readonly number[], resp: readonly number[]): FeatureSource =>
  arraySource({ dim: 2, inst: Float32Array.from(inst), resp: Float32Array.from(resp), labels, offsets });
const shallow = source([3, 4, 6, 8], [1, 0, 0, 1, 10, 1, 11, 0]);
/** Twice as long, turned by a right angle. */
const deep = source([0, 1, 0, 1], [0, 2, -2, 0, -2, 20, 0, 22]);

describe("states of two lists at two layers", async () => {
  const places = [
    { layer: 2, pooling: "last", source: shallow },
    { layer: 5, pooling: "last", source: deep },
  ];
  const look = await lookAtStates(places, { ids: ["p", "q"] });
  const at = (layer: number, of: string) => look.norms.find((norm) => norm.layer === layer && norm.of === of);

  it("are data of the report's schema", () => {
    expect(statesSchema.parse(look)).toEqual(look);
    expect([look.lists, look.responses, look.seed]).toEqual([2, 4, 0]);
  });

  it("have their norms", () => {
    expect(at(2, "instruction")).toMatchObject({ low: 6.25, median: 7.5, high: 8.75 });
    // 1, 1, sqrt(101), 11
    expect(at(2, "response")!.median).toBeCloseTo((1 + Math.sqrt(101)) / 2, 6);
    expect(at(5, "response")!.median).toBeCloseTo(1 + Math.sqrt(101), 6);
  });

  it("are compared between layers: a right angle, and a step of sqrt(1 + 4) of their length", () => {
    expect(look.cosines).toHaveLength(1);
    expect(look.cosines[0]).toMatchObject({ from: 2, to: 5, pooling: "last" });
    expect(look.cosines[0]!.median).toBeCloseTo(0, 6);
    expect(look.changes[0]!.low).toBeCloseTo(Math.sqrt(5), 6);
    expect(look.changes[0]!.high).toBeCloseTo(Math.sqrt(5), 6);
  });

  it("lie apart within their lists, and hardly on the whole", () => {
    // Safe (1, 0), (11, 0), unsafe (0, 1), (10, 1): means (6, 0), (5, 1), common (5.5, 0.5).
    const between = 4 * (0.25 + 0.25);
    const within = 4 * 25;
    for (const separation of look.separation) {
      expect(separation.fisher).toBeCloseTo(between / within, 6);
      // Within each list both classes are always at the same two places: nothing varies within a class.
      expect([separation.fisher_within, separation.responses]).toEqual([null, 4]);
      expect(separation.silhouette_within).toBeCloseTo(1, 6);
      // A safe response is 10 from the other safe one, and sqrt(2) and sqrt(82) or sqrt(122) from the unsafe ones.
      const other = [(Math.SQRT2 + Math.sqrt(82)) / 2, (Math.SQRT2 + Math.sqrt(122)) / 2];
      const scale = separation.layer === 2 ? 1 : 2;
      const one = other.map((b) => (scale * (b - 10)) / (scale * Math.max(b, 10)));
      expect(separation.silhouette).toBeCloseTo((one[0]! + one[1]!) / 2, 6);
    }
  });

  it("have a map a layer and method, its points told by class, list and candidate", () => {
    expect(look.maps.map(({ layer, method }) => [layer, method])).toEqual([
      [2, "pca"],
      [2, "umap"],
      [5, "pca"],
      [5, "umap"],
    ]);
    const { points } = look;
    const place = points.list.findIndex((list, i) => list === "q" && points.candidate[i] === 1);
    expect(points.class[place]).toBe(1);
    for (const { x, y } of look.maps) expect([x.length, y.length]).toEqual([4, 4]);
  });
});

describe("many states", () => {
  const many = arraySource(randomFeatures([3, 1, 4, 2, 5, 2, 3, 3], 6, 2));
  const ids = Array.from({ length: 8 }, (_, b) => b);
  const look = (more: object) =>
    lookAtStates([{ layer: 1, pooling: "mean", source: many }], { ids, methods: ["pca"], ...more });

  it("are drawn as whole lists, by the seed", async () => {
    const [one, again, other] = [
      await look({ sample: 9, seed: 1 }),
      await look({ sample: 9, seed: 1 }),
      await look({ sample: 9, seed: 2 }),
    ];
    expect(one).toEqual(again);
    expect(one.points.list).not.toEqual(other.points.list);
    for (const { points, responses, lists } of [one, other]) {
      expect(responses).toBeLessThanOrEqual(9);
      expect(new Set(points.list).size).toBe(lists);
      for (const list of new Set(points.list)) {
        const own = points.list.filter((each) => each === list).length;
        expect(own).toBe(many.offsets[Number(list) + 1]! - many.offsets[Number(list)]!);
      }
    }
  });

  it("are at least one list, and fewer in a map than were looked at", async () => {
    expect((await look({ sample: 1 })).lists).toBe(1);
    const found = await look({ points: 5 });
    expect(found.responses).toBe(23);
    expect(found.points.class.length).toBeLessThanOrEqual(5);
    expect(found.maps[0]!.x).toHaveLength(found.points.class.length);
  });

  it("without labels have norms and maps, and nothing to tell apart", async () => {
    const features = { ...randomFeatures([2, 3], 4), labels: new Float32Array(5).fill(Number.NaN) };
    const found = await lookAtStates([{ layer: 0, pooling: "last", source: arraySource(features) }], { ids: [1, 2] });
    expect(found.separation).toEqual([]);
    expect(found.points.class).toEqual(Array.from({ length: 5 }, () => null));
    expect(found.norms).toHaveLength(2);
  });

  it("of no list are refused", async () => {
    const empty = arraySource(randomFeatures([], 4));
    await expect(lookAtStates([{ layer: 0, pooling: "last", source: empty }], { ids: [] })).rejects.toMatchObject({
      code: "list/empty-file",
    });
  });
});

describe("layers of maps", () => {
  it("are spread over those asked for", () => {
    expect(mapLayers([0, 1, 2, 3, 4, 5, 6])).toEqual([0, 2, 4, 6]);
    expect(mapLayers([8, 16])).toEqual([8, 16]);
    expect(mapLayers([3])).toEqual([3]);
  });

  it("quartiles lie between neighbours", () => {
    expect(quartiles([4, 1, 2])).toEqual({ low: 1.5, median: 2, high: 3 });
  });
});
