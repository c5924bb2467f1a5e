/** config.json as a file: found, read, and its entries checked by name. What the entries mean is its family's (test/engine). */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { badValue, configFile, parseEntries, positive, readConfigFile, size, tokenId } from "../../weights/config.ts";
import { readJsonFile } from "../../weights/json.ts";
import { failing } from "../support/failing.ts";

const ENTRIES = { model_type: "llama", hidden_size: 64, rope_scaling: { rope_type: "linear", factor: 2.5 } };

describe("config.json", () => {
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "stratum-config-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("is read from a folder", async () => {
    const path = join(folder, "config.json");
    await writeFile(path, JSON.stringify(ENTRIES));
    expect(await readConfigFile(folder)).toEqual({ path, entries: ENTRIES });
    await writeFile(path, `\ufeff${JSON.stringify(ENTRIES)}`);
    expect(await readConfigFile(folder)).toEqual({ path, entries: ENTRIES });
  });

  it("missing: the folder is named", async () => {
    await expect(readConfigFile(join(folder, "nowhere"))).rejects.toThrow(failing("config/missing", "nowhere"));
    await mkdir(join(folder, "empty"));
    await expect(readConfigFile(join(folder, "empty"))).rejects.toThrow(failing("config/missing", "empty"));
    await mkdir(join(folder, "odd", "config.json"), { recursive: true });
    await expect(readConfigFile(join(folder, "odd"))).rejects.toThrow(failing("file/not-a-file", "odd"));
  });

  it("missing beside weights of another format: the format is the fault, and is named", async () => {
    const gguf = join(folder, "gguf");
    await mkdir(gguf);
    await writeFile(join(gguf, "tiny.Q4_K_M.gguf"), "GGUF");
    const named = { message: expect.stringContaining("tiny.Q4_K_M.gguf"), fix: expect.stringContaining("base model") };
    await expect(readConfigFile(gguf)).rejects.toMatchObject({ code: "model/no-weights", ...named });
    await expect(readConfigFile(join(gguf, "tiny.Q4_K_M.gguf"))).rejects.toMatchObject({
      ...{ code: "model/not-a-directory", ...named },
    });
    // Here the weights can be read: config.json alone is missing.
    await writeFile(join(gguf, "model.safetensors"), "");
    await expect(readConfigFile(gguf)).rejects.toThrow(failing("config/missing", "gguf"));
  });

  it("no JSON, no UTF-8, or too large", async () => {
    for (const bytes of ["", "{", "{'a':1}", '{"eps": NaN}', Uint8Array.of(0x22, 0xff, 0x22)]) {
      await writeFile(join(folder, "config.json"), bytes);
      await expect(readConfigFile(folder)).rejects.toThrow(failing("config/bad-json", "config.json"));
    }
    await writeFile(join(folder, "config.json"), `{"model_type":"llama"}${" ".repeat(10_000_000)}`);
    await expect(readConfigFile(folder)).rejects.toThrow(failing("config/bad-json", "too large", "10000022"));
  });

  it("nested so deep that quoting it would overflow the stack, or of more values than fit into memory", async () => {
    const path = join(folder, "config.json");
    await writeFile(path, `{"model_type":${"[".repeat(100_000)}${"]".repeat(100_000)}}`);
    await expect(readConfigFile(folder)).rejects.toThrow(failing("config/bad-json", "nested deeper than 512"));
    const big = {
      what: "a list",
      maxBytes: 2 ** 26,
      missing: "config/missing",
      bad: "config/bad-json",
      fix: "-",
    } as const;
    await writeFile(path, `[${"{},".repeat(5_000_000)}{}]`);
    const before = process.resourceUsage().maxRSS;
    await expect(readJsonFile(path, big)).rejects.toThrow(failing("config/bad-json", "too many values"));
    expect(process.resourceUsage().maxRSS - before).toBeLessThan(200 * 1024);
  });

  it("JSON, but no object", async () => {
    for (const config of [[], null, 3, "llama"]) {
      await writeFile(join(folder, "config.json"), JSON.stringify(config));
      await expect(readConfigFile(folder)).rejects.toThrow(failing("config/bad-json", "not an object"));
      expect(() => configFile(config, "m/config.json")).toThrow(failing("config/bad-json", "m/config.json"));
    }
    expect(configFile(ENTRIES, "m/config.json")).toEqual({ path: "m/config.json", entries: ENTRIES });
  });
});

describe("entries", () => {
  const Schema = z.object({
    heads: size(8),
    theta: positive.nullish(),
    ids: z.array(tokenId).optional(),
    inner: z.object({ factor: positive }).optional(),
  });
  const parse = (entries: object, prefix = "") => parseEntries(Schema, entries, prefix, "m/config.json");

  it("that are known are given, others left out", () => {
    expect(parse({ heads: 8, theta: null, more: "x" })).toEqual({ heads: 8, theta: null });
    expect(parse({ heads: 1, ids: [-1, 0, 2 ** 31], inner: { factor: 1e12 } }).ids).toEqual([-1, 0, 2 ** 31]);
  });

  it("of a wrong type or size are named with file, full key and value", () => {
    const wrong: readonly (readonly [object, string])[] = [
      [{}, "heads is missing"],
      [{ heads: null }, "heads is null"],
      [{ heads: 9 }, "heads is 9"],
      [{ heads: 0 }, "heads is 0"],
      [{ heads: 1.5 }, "heads is 1.5"],
      [{ heads: "4" }, 'heads is "4"'],
      [{ heads: 4, theta: 0 }, "theta is 0"],
      [{ heads: 4, theta: 1e300 }, "theta is 1e\\+300"],
      [{ heads: 4, ids: [1, "a"] }, 'ids.1 is "a"'],
      [{ heads: 4, ids: [-2] }, "ids.0 is -2"],
      [{ heads: 4, ids: [2 ** 31 + 1] }, "ids.0 is 2147483649"],
      [{ heads: 4, inner: { factor: -1 } }, "inner.factor is -1"],
      [{ heads: 4, inner: {} }, "inner.factor is missing"],
      [{ heads: 4, inner: 3 }, "inner is 3"],
    ];
    for (const [entries, text] of wrong) {
      expect(() => parse(entries)).toThrow(failing("config/bad-value", "m/config.json", text));
      expect(() => parse(entries, "rope_scaling")).toThrow(failing("config/bad-value", `rope_scaling.${text}`));
    }
  });

  it("that do not go together are said so in the same way", () => {
    expect(badValue("m/config.json", "heads 5 of 64")).toMatchObject({
      code: "config/bad-value",
      message: expect.stringContaining("m/config.json: heads 5 of 64"),
      fix: expect.stringContaining("config.json"),
    });
  });
});
