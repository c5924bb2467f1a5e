/** Names of hub models, and the environment variables that say where the hub and its cache are. */
import { homedir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { hubRepository } from "../../weights/hub-cache.ts";
import { parseHubName } from "../../weights/hub-name.ts";
import { hubSettings } from "../../weights/hub-settings.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";

describe("a hub name", () => {
  it.each([
    ["org/name", "org/name", "main"],
    ["gpt2", "gpt2", "main"],
    ["org/name@v1.0", "org/name", "v1.0"],
    ["meta-llama/Llama-3.2-1B@refs/pr/7", "meta-llama/Llama-3.2-1B", "refs/pr/7"],
    ["gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e", "gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"],
  ])("%s", (text, id, revision) => {
    expect(parseHubName(text)).toEqual({ id, revision });
  });

  it.each([
    ...["", "path/to/model", "./model", "/model", "model/", "~/model", "C:\\model", "a b/c", "a--b/c", "a..b", "x.git"],
    ...["../up", "org/..", "org/.hidden", "org/name@", "org/name@/x", "org/name@a/../b", "org/name@a@b", "org/name@-x"],
    ...["-org/name", `org/${"x".repeat(97)}`, "org/name\n", "örg/name"],
  ])("is not %o", (text) => {
    expect(parseHubName(text)).toBeNull();
  });

  it("has a folder of its own, which no name leads out of", () => {
    const { root, ref, file } = hubRepository("/cache", "org/name");
    expect([root, ref("refs/pr/7"), file("c0ffee", "config.json")]).toEqual([
      join("/cache", "models--org--name"),
      join("/cache", "models--org--name", "refs", "refs", "pr", "7"),
      join("/cache", "models--org--name", "snapshots", "c0ffee", "config.json"),
    ]);
    expect(hubRepository("/cache", "gpt2").root).toBe(join("/cache", "models--gpt2"));
  });
});

describe("the settings", () => {
  let folder: Folder;
  beforeEach(async () => {
    folder = await temporaryFolder();
  });
  afterEach(() => folder[Symbol.asyncDispose]());
  const nowhere = "/nowhere";

  it("without variables are those of the hub", async () => {
    expect(await hubSettings({ HF_TOKEN_PATH: nowhere })).toEqual({
      endpoint: "https://huggingface.co",
      cache: join(homedir(), ".cache", "huggingface", "hub"),
      token: null,
      offline: false,
      timeoutMs: { metadata: 30_000, bytes: 30_000 },
    });
  });

  it.each([
    [{ HF_HUB_CACHE: "/a", HUGGINGFACE_HUB_CACHE: "/b", HF_HOME: "/c", XDG_CACHE_HOME: "/d" }, "/a"],
    [{ HUGGINGFACE_HUB_CACHE: "/b", HF_HOME: "/c", XDG_CACHE_HOME: "/d" }, "/b"],
    [{ HF_HUB_CACHE: "", HF_HOME: "/c", XDG_CACHE_HOME: "/d" }, "/c/hub"],
    [{ XDG_CACHE_HOME: "/d" }, "/d/huggingface/hub"],
    [{ HF_HOME: "~/models" }, join(homedir(), "models", "hub")],
  ])("find the cache by %o", async (env, cache) => {
    expect((await hubSettings({ HF_TOKEN_PATH: nowhere, ...env })).cache).toBe(cache);
  });

  it("find the token: the variable, the file that is named, the file of HF_HOME", async () => {
    const named = await folder.write("named", "hf_named\n");
    await folder.write("token", "hf_home\n");
    const env = { HF_HOME: folder.path };
    const tokenOf = async (more: Record<string, string>) => (await hubSettings({ ...env, ...more })).token;
    expect(await tokenOf({ HF_TOKEN: " hf_given\n", HF_TOKEN_PATH: named })).toBe("hf_given");
    expect(await tokenOf({ HF_TOKEN_PATH: named })).toBe("hf_named");
    expect(await tokenOf({})).toBe("hf_home");
    expect(await tokenOf({ HF_TOKEN: "hf_given", HF_HUB_DISABLE_IMPLICIT_TOKEN: "1" })).toBeNull();
    expect(await tokenOf({ HF_TOKEN_PATH: nowhere })).toBeNull();
    await expect(tokenOf({ HF_TOKEN: "hf_a\r\nX: y" })).rejects.toMatchObject({
      code: "usage/hub-settings",
      message: expect.not.stringMatching("hf_a"),
    });
  });

  it.each([
    ["1", true],
    ["on", true],
    ["YES", true],
    ["True", true],
    ["0", false],
    ["", false],
    ["no", false],
  ])("HF_HUB_OFFLINE=%s is %s", async (value, offline) => {
    expect((await hubSettings({ HF_TOKEN_PATH: nowhere, HF_HUB_OFFLINE: value })).offline).toBe(offline);
  });

  it.each([
    ["HF_ENDPOINT", "hub.example"],
    ["HF_ENDPOINT", "ftp://hub.example"],
    ["HF_ENDPOINT", "https://user@hub.example"],
    ["HF_HUB_ETAG_TIMEOUT", "soon"],
    ["HF_HUB_DOWNLOAD_TIMEOUT", "0"],
  ])("%s=%s is refused", async (name, value) => {
    const asking = hubSettings({ HF_TOKEN_PATH: nowhere, [name]: value });
    await expect(asking).rejects.toMatchObject({ code: "usage/hub-settings", message: expect.stringMatching(name) });
  });

  it("take a mirror and other limits", async () => {
    const env = {
      HF_ENDPOINT: "https://mirror.example/hf/",
      HF_HUB_ETAG_TIMEOUT: "2.5",
      HF_HUB_DOWNLOAD_TIMEOUT: "60",
    };
    expect(await hubSettings({ HF_TOKEN_PATH: nowhere, ...env })).toMatchObject({
      endpoint: "https://mirror.example/hf",
      timeoutMs: { metadata: 2500, bytes: 60_000 },
    });
  });
});
