/** The rule that imports point one way is alive: biome, with the project's own configuration, refuses an offender. */
import { spawnSync } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const BIOME = createRequire(import.meta.url).resolve("@biomejs/biome/bin/biome");

const RESTRICTED = "lint/style/noRestrictedImports";
const CYCLE = "lint/suspicious/noImportCycles";

/** One offence a file: the file, what it says, and the rule that must object. */
const OFFENCES: readonly (readonly [file: string, text: string, rule: string])[] = [
  ["kernels/a.ts", 'import { x } from "../engine/x.ts";\nexport const y = x;\n', RESTRICTED],
  ["kernels/b.ts", 'export { x } from "../weights/x.ts";\n', RESTRICTED],
  ["kernels/c.ts", 'import { join } from "node:path";\nexport const y = join;\n', RESTRICTED],
  ["kernels/d.ts", 'import { create } from "webgpu";\nexport const y = create;\n', RESTRICTED],
  ["kernels/e.ts", 'import type { X } from "../engine/x.ts";\nexport type Y = X;\n', RESTRICTED],
  ["kernels/f.ts", 'export const y = await import("../scorer/x.ts");\n', RESTRICTED],
  ["kernels/deeper/g.ts", 'export { x } from "../../engine/x.ts";\n', RESTRICTED],
  ["weights/a.ts", 'export { x } from "../kernels/x.ts";\n', RESTRICTED],
  ["weights/b.ts", 'export { x } from "../engine/x.ts";\n', RESTRICTED],
  ["weights/c.ts", 'export { create } from "webgpu";\n', RESTRICTED],
  ["engine/a.ts", 'export { x } from "../scorer/x.ts";\n', RESTRICTED],
  ["engine/b.ts", 'export { x } from "../cli/x.ts";\n', RESTRICTED],
  ["engine/c.ts", 'export { x } from "../index.ts";\n', RESTRICTED],
  ["scorer/a.ts", 'export { x } from "../cli/x.ts";\n', RESTRICTED],
  ["scorer/b.ts", 'export { x } from "../index.ts";\n', RESTRICTED],
  ["errors.ts", 'export { x } from "./engine/x.ts";\n', RESTRICTED],
  ["engine/ring-a.ts", 'import { b } from "./ring-b.ts";\nexport const a = () => b;\n', CYCLE],
  ["engine/ring-b.ts", 'import { a } from "./ring-a.ts";\nexport const b = () => a;\n', CYCLE],
];

/** The arrows that are meant to be. */
const ALLOWED: readonly (readonly [file: string, text: string])[] = [
  ["kernels/x.ts", "export const x = 1;\n"],
  ["weights/x.ts", "export const x = 1;\n"],
  [
    "engine/x.ts",
    'import { x as k } from "../kernels/x.ts";\nimport { x as w } from "../weights/x.ts";\nexport const x = k + w;\n',
  ],
  ["engine/y.ts", 'import { create } from "webgpu";\nexport const y = create;\n'],
  [
    "scorer/x.ts",
    'import { x as e } from "../engine/x.ts";\nimport { x as w } from "../weights/x.ts";\nexport const x = e + w;\n',
  ],
  [
    "cli/x.ts",
    'import { x as s } from "../scorer/x.ts";\nimport { x as e } from "../engine/x.ts";\nexport const x = s + e;\n',
  ],
];

interface Diagnostic {
  readonly category: string;
  readonly severity: string;
  readonly location: { readonly path: string | { readonly file: string } };
}

/** Biome's findings in a folder that holds these files and the project's configuration, by file; and its exit status. */
async function lint(folder: string, files: readonly (readonly [string, string, ...unknown[]])[]) {
  await cp(join(ROOT, "biome.json"), join(folder, "biome.json"));
  await cp(join(ROOT, ".gitignore"), join(folder, ".gitignore"));
  for (const [file, text] of files) {
    await mkdir(dirname(join(folder, file)), { recursive: true });
    await writeFile(join(folder, file), text);
  }
  const args = [BIOME, "lint", "--reporter=json", "--max-diagnostics=none", "."];
  const { status, stdout } = spawnSync(process.execPath, args, { cwd: folder, encoding: "utf8" });
  const { diagnostics } = JSON.parse(stdout) as { diagnostics: Diagnostic[] };
  const found = new Map<string, string[]>();
  for (const { category, severity, location } of diagnostics) {
    if (severity !== "error") continue;
    const path = typeof location.path === "string" ? location.path : location.path.file;
    found.set(path, [...(found.get(path) ?? []), category]);
  }
  return { status, found };
}

describe("imports that point the wrong way", () => {
  let folder = "";
  let result: Awaited<ReturnType<typeof lint>>;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "stratum-imports-"));
    result = await lint(folder, [...ALLOWED, ...OFFENCES]);
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("fail the check", () => {
    expect(result.status).toBe(1);
  });

  it.each(OFFENCES)("%s", (file, _, rule) => {
    expect(result.found.get(file)).toContain(rule);
  });

  it.each(ALLOWED)("%s is let through", (file) => {
    expect(result.found.get(file)).toBeUndefined();
  });
});

it("imports that point the right way pass the check", async () => {
  const folder = await mkdtemp(join(tmpdir(), "stratum-imports-"));
  try {
    expect(await lint(folder, ALLOWED)).toEqual({ status: 0, found: new Map() });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

it("the test command runs the check, warnings included", async () => {
  const { scripts } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8")) as {
    scripts: Record<string, string>;
  };
  expect(scripts["test"]).toContain("npm run check");
  expect(scripts["check"]).toMatch(/biome (ci|check|lint) --error-on-warnings/);
});
