/** `stratum report` and the documents it shows: the same numbers in a page, in Markdown and in a terminal. */
import { afterAll, describe, expect, it } from "vitest";
import { documentHtml } from "../../cli/document-html.ts";
import { documentMarkdown } from "../../cli/document-markdown.ts";
import { documentText } from "../../cli/document-text.ts";
import { reportDocument, spans } from "../../cli/report-document.ts";
import type { Report } from "../../scorer/report-data.ts";
import { errorCodes, stratum, temporaryFolder } from "../support/cli.ts";
import { makeReport } from "../support/report.ts";

const folder = await temporaryFolder();
afterAll(() => folder[Symbol.asyncDispose]());

const report = makeReport();
const document = reportDocument(report);
const page = documentHtml(document);

describe("a report", () => {
  it("tells what was run: model, revision, hash, adapter, versions, seeds, command", () => {
    const facts = new Map(document.facts);
    const { run } = report;
    expect(facts.get("model")).toContain(run.model.name);
    expect(facts.get("SHA-256 of the data")).toBe(run.data.sha256);
    expect(facts.get("adapter")).toContain(run.adapter.name);
    for (const version of Object.values(run.versions)) expect(facts.get("versions")).toContain(version);
    expect([facts.get("seeds"), facts.get("layers"), facts.get("command")]).toEqual(["0, 1, 2", "0 to 6", run.command]);
    const pinned = { ...report, run: { ...run, model: { ...run.model, revision: "c0ffee" } } };
    expect(new Map(reportDocument(pinned).facts).get("revision")).toBe("c0ffee");
  });

  it("says the same in all formats, with every number of the table of layers", () => {
    const [markdown, text] = [documentMarkdown(document), documentText(document, 100)];
    for (const { layers, top1 } of report.rows) {
      if (layers?.length !== 1) continue;
      const number = (100 * top1!.mean).toFixed(1);
      for (const shown of [page, markdown, text]) expect(shown).toContain(number);
    }
    for (const reason of report.recommendation!.reason) {
      expect(page).toContain(`<p>${reason}</p>`);
      expect(text.replaceAll("\n", " ")).toContain(reason);
      expect(markdown).toContain(reason);
    }
  });

  it("needs nothing but itself", () => {
    expect(page).not.toMatch(/<script|@import|url\(|src=/);
    const links = [...page.matchAll(/href="([^"]*)"/g)].map(([, target]) => target!);
    expect(links.filter((target) => !target.startsWith("#"))).toEqual(["report.json", "report.csv", "cells.jsonl"]);
  });

  it("has every link's target, and no id twice", () => {
    const ids = [...page.matchAll(/ id="([^"]+)"/g)].map(([, id]) => id!);
    expect(new Set(ids).size).toBe(ids.length);
    const named = [...page.matchAll(/(?:href="#|aria-labelledby=")([^"]+)"/g)].map(([, id]) => id!);
    expect(named.filter((id) => !ids.includes(id))).toEqual([]);
  });

  it("holds names that look like markup as text, in HTML and in Markdown", () => {
    expect(page).toContain("a &lt;model&gt; &amp; co");
    expect(page).not.toContain("<model>");
    const nasty = { ...report, run: { ...report.run, data: { ...report.run.data, name: "a|b_*`<c>" } } };
    expect(documentMarkdown(reportDocument(nasty))).toContain("a\\|b\\_\\*\\`\\<c\\>");
  });

  it("of 32 layers stays below 3 MB", () => {
    const large = documentHtml(reportDocument(makeReport({ depth: 32, recommended: 9, points: 300 })));
    expect(Buffer.byteLength(large)).toBeLessThan(3e6);
  });

  it("holds no NaN or undefined where something was not measured", () => {
    const bare: Report = {
      ...report,
      rows: report.rows.map((row, i) => (i % 5 === 0 ? { ...row, top1: null, pairwise: null } : row)),
      ...{ costs: [], costs_note: null, transfer: null, slices: [], states: null, coverage: null },
      recommendation: null,
    };
    const own = reportDocument(bare);
    for (const shown of [documentHtml(own), documentMarkdown(own), documentText(own, 80)])
      expect(shown).not.toMatch(/NaN|undefined|Infinity|\[object/);
    for (const shown of [page, documentMarkdown(document), documentText(document, 80)])
      expect(shown).not.toMatch(/NaN|undefined|Infinity|\[object/);
    expect(documentText(own, 80)).toContain("nothing to recommend");
    expect(documentText(own, 80)).toContain("were not measured");
  });

  it("of several poolings draws each, and of one layer too", () => {
    const two = documentHtml(reportDocument(makeReport({ depth: 0, recommended: 0, poolings: ["last", "mean"] })));
    expect(two).toContain("Top-1 by layer, pooling last");
    expect(two).toContain("Top-1 by layer, pooling mean");
    expect(two).not.toMatch(/NaN|undefined/);
  });

  it("writes runs of layers as spans", () => {
    expect(spans([0, 1, 2, 3, 8, 9, 12])).toBe("0 to 3, 8, 9, 12");
  });
});

describe("Markdown", () => {
  it("has tables whose rows have as many cells as their header", () => {
    for (const block of documentMarkdown(document).split("\n\n")) {
      const rows = block.split("\n").filter((line) => line.startsWith("|"));
      const cells = rows.map((line) => line.replaceAll("\\|", "").split("|").length);
      expect(new Set(cells).size).toBeLessThanOrEqual(1);
    }
  });
});

describe("a terminal", () => {
  it("gets lines that fit, tables apart, and a curve", () => {
    const text = documentText(document, 80);
    const prose = text.split("\n").filter((line) => !/ {2}/.test(line) && !line.startsWith("("));
    expect(prose.filter((line) => line.length > 80)).toEqual([]);
    expect(text).not.toMatch(/^,/m);
    expect(text).toMatch(/top-1 in %, scorer \(srr\); layer 0 to 6\n +\d+\.\d+ [┤┼]/);
  });

  it("is not steered by other people's names", () => {
    const run = { ...report.run, data: { ...report.run.data, name: "x\u001b[31m\u0007" } };
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not be there.
    expect(documentText(reportDocument({ ...report, run }), 80)).not.toMatch(/[\u0000-\u0009\u000b-\u001f]/);
  });
});

describe("the command", () => {
  it("writes a page beside the data, and prints Markdown and text", async () => {
    await folder.write("report.json", JSON.stringify(report));
    const html = await stratum(["report", folder.path]);
    expect([html.code, html.stdout]).toEqual([0, ""]);
    expect(await folder.read("report.html")).toBe(page);
    const markdown = await stratum(["report", folder.path, "--format", "md"]);
    expect(markdown.stdout).toBe(documentMarkdown(document));
    const text = await stratum(["report", folder.path, "--format", "text"]);
    expect(text.stdout).toBe(documentText(document, 100));
  });

  it("refuses a folder without a report, a damaged one, and another version", async () => {
    const refused = async (content: string | null) => {
      await using other = await temporaryFolder();
      if (content !== null) await other.write("report.json", content);
      const { code, stderr, stdout } = await stratum(["report", other.path, "--format", "md"]);
      return [code, errorCodes(stderr)[0], stdout];
    };
    expect(await refused(null)).toEqual([2, "report/missing", ""]);
    expect(await refused("{")).toEqual([2, "report/damaged", ""]);
    expect(await refused(JSON.stringify({ ...report, rows: 3 }))).toEqual([2, "report/damaged", ""]);
    expect(await refused(JSON.stringify({ ...report, version: 99 }))).toEqual([2, "report/other-version", ""]);
  });
});
