/** A file system without links: the snapshot holds the files themselves. */
import { lstat, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it, vi } from "vitest";
import { hubPlace, tinyFiles } from "../support/hub.ts";

vi.mock("node:fs/promises", async (importActual) => ({
  ...(await importActual<typeof import("node:fs/promises")>()),
  symlink: async () => {
    throw Object.assign(new Error("EPERM: operation not permitted, symlink"), { code: "EPERM", syscall: "symlink" });
  },
}));

it("files are moved, found again, and fetched once", async () => {
  const files = await tinyFiles();
  await using place = await hubPlace(files);
  const model = await place.open();
  await model.fetchSmallFiles();
  expect((await lstat(join(model.directory, "config.json"))).isFile()).toBe(true);
  expect(Buffer.compare(await readFile(join(model.directory, "config.json")), files.get("config.json")!)).toBe(0);
  expect(await readdir(join(place.repository, "blobs"))).toEqual([]);
  place.hub.forget();
  await (await place.open()).fetchSmallFiles();
  expect(place.hub.requests.map(({ route }) => route)).toEqual(["revision"]);
});
