import { describe, expect, it } from "vitest";
import { formatBytes, formatSeconds, formatTable, plainText } from "../../cli/format.ts";
import { printable, StratumError } from "../../errors.ts";

describe("numbers", () => {
  it.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1536, "1.50 KiB"],
    [13_830_400, "13.2 MiB"],
    [5 * 1024 ** 4, "5.00 TiB"],
  ])("%d bytes are %s", (bytes, text) => expect(formatBytes(bytes)).toBe(text));

  it.each([
    [0.4234, "0.42 s"],
    [9.999, "10 s"],
    [119.4, "119 s"],
    [179.7, "3 min 0 s"],
    [7199.9, "2 h 0 min"],
  ])("%d seconds are %s", (seconds, text) => expect(formatSeconds(seconds)).toBe(text));

  it("aligns columns", () => {
    expect(
      formatTable(
        ["a", "n"],
        [
          ["long", "1"],
          ["b", "200"],
        ],
        [1],
      ),
    ).toBe("a       n\nlong    1\nb     200");
  });
});

describe("other people's words", () => {
  const hostile = "a\u001b[31mred\u0007 \u009b2J \u202eback\u2028line";

  it("cannot steer a terminal in an error", () => {
    const error = new StratumError("list/bad-json", hostile, hostile);
    for (const text of [error.message, error.fix]) {
      expect(text).toBe("a\\u001b[31mred\\u0007 \\u009b2J \\u202eback\\u2028line");
    }
    expect(printable("two\nlines, naïve 東京 🙂")).toBe("two\nlines, naïve 東京 🙂");
  });

  it("cannot steer one in a picture, and are cut to a width", () => {
    expect(plainText(hostile)).toBe("a [31mred   2J  back line");
    expect(plainText("abcdef", 4)).toBe("abc…");
  });
});
