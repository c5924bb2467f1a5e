/** A folder for a target's files, gone when the tests of the file that imports it are over. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";

/** @param name of the kind of files */
export function fuzzFolder(name: string): string {
  const folder = mkdtempSync(join(tmpdir(), `stratum-fuzz-${name}-`));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
