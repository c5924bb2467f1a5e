/** The register of ids against a map, across the sizes at which its table and its blocks grow. */
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../kernels/random.ts";
import { CLAIM_BYTES, createIdRegister } from "../../scorer/id-register.ts";

const COUNT = 70_000;
const random = seededRandom(3);
/** About a tenth of the ids were used before; numbers and their text are one id. */
const ids = Array.from({ length: COUNT }, (_, i) => {
  const which = random() < 0.1 ? Math.floor(random() * i) : i;
  return which % 3 === 0 ? which : `${which}`;
});

/** What each claim must give: the line of the first with the same text. */
function expected(): (number | undefined)[] {
  const seen = new Map<string, number>();
  return ids.map((id, i) => {
    const earlier = seen.get(String(id));
    if (earlier === undefined) seen.set(String(id), i + 1);
    return earlier;
  });
}

describe("a register of ids", () => {
  const wanted = expected();

  it("gives the line that had an id first", () => {
    const register = createIdRegister();
    expect(ids.map((id, i) => register.claim(id, i + 1))).toEqual(wanted);
    expect(wanted.filter((line) => line !== undefined).length).toBeGreaterThan(COUNT / 20);
    expect(register.size).toBe(COUNT);
  });

  it.each([0, 1, 1000, 65_536, 65_537])("goes on from the bytes of its first %i claims", (cut) => {
    const first = createIdRegister();
    for (const [i, id] of ids.slice(0, cut).entries()) first.claim(id, i + 1);
    // In two pieces, as chunks write them.
    const pieces = [first.bytes(0, cut >> 1), first.bytes(cut >> 1, cut)];
    expect(Buffer.concat(pieces)).toHaveLength(cut * CLAIM_BYTES);
    const second = createIdRegister(Buffer.concat(pieces));
    expect(second.size).toBe(cut);
    expect(ids.slice(cut).map((id, i) => second.claim(id, cut + i + 1))).toEqual(wanted.slice(cut));
  });

  it("refuses bytes that are no whole number of claims", () => {
    expect(() => createIdRegister(new Uint8Array(CLAIM_BYTES + 1))).toThrow(
      expect.objectContaining({ code: "list/bad-claims" }),
    );
  });
});
