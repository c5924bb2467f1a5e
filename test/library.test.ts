/** The README's library example does what the README says: the snippet is run, and its output compared. */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { REPOSITORY } from "./support/cli.ts";

/** Inside the package, so that its own name resolves to it. */
const folder = join(REPOSITORY, "test", `tmp-${process.pid}`);
afterAll(() => rm(folder, { recursive: true, force: true }));

/** The README's text under a heading, up to the next of the same rank. */
function section(heading: string): string {
  const readme = readFileSync(join(REPOSITORY, "README.md"), "utf8");
  const start = `\n${readme}`.indexOf(`\n${heading}\n`);
  if (start < 0) throw new Error(`README.md has no heading "${heading}"`);
  const rest = readme.slice(start + heading.length);
  const end = rest.search(/\n## /);
  return end < 0 ? rest : rest.slice(0, end);
}

/** The first fenced block of a language, and what follows it. */
function block(text: string, language: string): { readonly code: string; readonly after: string } {
  const found = new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "ms").exec(text);
  if (found === null) throw new Error(`no block of ${language} in ${JSON.stringify(text.slice(0, 200))}`);
  return { code: found[1] ?? "", after: text.slice(found.index + found[0].length) };
}

/** Numbers differ from adapter to adapter in their last digits: three decimals are what the README promises. */
const rounded = (text: string) =>
  text.trim().replaceAll(/-?\d+\.\d+(?:e[+-]?\d+)?/gi, (number) =>
    Number(number)
      .toFixed(3)
      .replace(/^-(0\.0+)$/, "$1"),
  );

function runTypeScript(file: string): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const tsx = join(REPOSITORY, "node_modules", "tsx", "dist", "cli.mjs");
  const child = spawn(process.execPath, [tsx, file], { cwd: REPOSITORY, stdio: ["ignore", "pipe", "pipe"] });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    child[name].setEncoding("utf8").on("data", (chunk: string) => {
      output[name] += chunk;
    });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, ...output }));
  });
}

describe("the README's library example", () => {
  it("runs as it stands, and prints what stands below it", async () => {
    const { code: snippet, after } = block(section("## As a library"), "ts");
    expect(snippet).toContain('from "stratum-rank"');
    const { code: shown } = block(after, "text");
    await mkdir(folder, { recursive: true });
    const file = join(folder, "example.ts");
    await writeFile(file, snippet);
    const { code, stdout, stderr } = await runTypeScript(file);
    expect(code, stderr).toBe(0);
    expect(rounded(stdout)).toBe(rounded(shown));
  });
});
