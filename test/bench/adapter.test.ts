/** Which driver the processes of a run are given. */
import { afterEach, describe, expect, it } from "vitest";
import { sharedAdapter } from "../../bench/adapter.ts";

const VARIABLES = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] as const;
const before = VARIABLES.map((name) => [name, process.env[name]] as const);
afterEach(() => {
  for (const [name, value] of before) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
});

describe("the adapter of a run", () => {
  it("is the embedded one where it is asked for", async () => {
    expect(await sharedAdapter("embedded")).toMatchObject({ source: "embedded", manifest: null });
  });

  it("falls back as the engine's does, and a name is never another adapter", async () => {
    for (const name of VARIABLES) process.env[name] = "/nonexistent/driver.json";
    expect(await sharedAdapter("auto")).toMatchObject({ source: "embedded" });
    expect(await sharedAdapter("SwiftShader")).toMatchObject({ source: "embedded" });
    await expect(sharedAdapter("no such card")).rejects.toMatchObject({ code: "adapter/none" });
    await expect(sharedAdapter("system")).rejects.toMatchObject({ code: "adapter/none" });
  });
});
