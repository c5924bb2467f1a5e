import { describe, expect, it } from "vitest";
import { resolveLayer, resolveLayers } from "../../engine/layers.ts";

const usage = expect.objectContaining({ code: "usage/layer", kind: "usage" });

describe("a layer", () => {
  it.each([
    ["0", 24, 0],
    ["8", 24, 8],
    ["24", 24, 24],
    [" 3 ", 6, 3],
    ["25%", 24, 6],
    ["25%", 6, 2],
    ["25%", 22, 6],
    ["25%", 1, 1],
    ["0%", 24, 1],
    ["1%", 24, 1],
    ["12.5%", 24, 3],
    ["50%", 5, 3],
    ["100%", 7, 7],
  ])("'%s' of %i blocks is %i", (text, layers, layer) => {
    expect(resolveLayer(text, layers)).toBe(layer);
  });

  it("a percentage is floor(p L + 0.5), at least 1, at every depth", () => {
    for (let layers = 1; layers <= 100; layers++) {
      // Quarters are exact in floating point.
      for (const quarters of [1, 2, 3, 4])
        expect(resolveLayer(`${25 * quarters}%`, layers)).toBe(Math.max(1, Math.floor((quarters * layers + 2) / 4)));
    }
  });

  it.each(["", "abc", "-1", "1.5", "25 %", "%", "1e1", "0x2", "+3", "25%%"])("'%s' is refused", (text) => {
    expect(() => resolveLayer(text, 24)).toThrow(usage);
  });

  it("out of range: the message has the number and the depth, the fix the range", () => {
    expect(() => resolveLayer("25", 24)).toThrow(
      expect.objectContaining({
        code: "usage/layer",
        message: expect.stringMatching(/25 .*24/),
        fix: expect.stringContaining("0 to 24"),
      }),
    );
    expect(() => resolveLayer("100.1%", 24)).toThrow(usage);
  });
});

describe("layers", () => {
  it("keep the asked order and drop duplicates, by number and not by name", () => {
    expect(resolveLayers("8,2,25%,8,6", 24)).toEqual([8, 2, 6]);
    expect(resolveLayers(" 3 , 0", 6)).toEqual([3, 0]);
    expect(resolveLayers("all", 3)).toEqual([0, 1, 2, 3]);
  });

  it.each(["", "1,", ",1", "1,,2", "1;2", "all,1"])("'%s' is refused", (text) => {
    expect(() => resolveLayers(text, 24)).toThrow(usage);
  });
});
