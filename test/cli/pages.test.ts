/**
 * Pages as their readers meet them: opened from disk in a real browser, on a phone and at a desk, in light and dark. The
 * browser comes with the optional package of the embedded adapter; where there is none, these tests are skipped and say why.
 */
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { benchPage } from "../../cli/bench-page.ts";
import { documentHtml } from "../../cli/document-html.ts";
import { reportDocument } from "../../cli/report-document.ts";
import { axeFindings, noBrowser, openBrowser, openPage, SCREENS, sidewaysOverflow } from "../support/browser.ts";
import { type Folder, temporaryFolder } from "../support/cli.ts";
import { makeReport } from "../support/report.ts";

const missing = noBrowser();
const report = makeReport();
const bench = benchPage({
  ...{ command: "bench kernels", adapter: "llvmpipe", machine: "2 x a processor", node: "v20", version: "0.1.0" },
  ceilings: { gflops: 30, gbps: 10 },
  rows: ["matmul qkv", "matmul down", "attention", "norm"].map((name, i) => ({
    ...{ name, shape: "8 x 8", dtype: "f32", variant: "plain", median_ms: 1 + i, iqr_ms: 0.1, runs: 3 },
    ...{ gflops: 12 / (i + 1), gbps: 1 + i, ceiling_share: 0.4 },
  })),
});

describe.skipIf(missing !== undefined)(`pages${missing === undefined ? "" : ` (skipped: ${missing})`}`, () => {
  let folder: Folder;
  let browser: Browser;
  let pages: Readonly<Record<"report" | "bench", string>>;
  beforeAll(async () => {
    folder = await temporaryFolder();
    browser = await openBrowser();
    pages = {
      report: await folder.write("report.html", documentHtml(reportDocument(report))),
      bench: await folder.write("bench.html", bench),
    };
  });
  afterAll(async () => {
    await browser?.close();
    await folder?.[Symbol.asyncDispose]();
  });

  // Light and dark, on a phone and at a desk, each of them once a page.
  const looks = [
    { name: "report", screen: "phone", colours: "light" },
    { name: "report", screen: "desk", colours: "dark" },
    { name: "bench", screen: "phone", colours: "dark" },
    { name: "bench", screen: "desk", colours: "light" },
  ] as const;

  it.each(looks)("$name on a $screen in $colours: complains of nothing, fits, and axe finds nothing", async (look) => {
    await using opened = await openPage(browser, pages[look.name], look);
    const { page, complaints } = opened;
    expect(await sidewaysOverflow(page)).toBe(0);
    const [background, text] = await colours(page);
    expect(look.colours === "dark" ? background! < text! : background! > text!).toBe(true);
    // What is folded is read too.
    await page.evaluate('for (const each of document.querySelectorAll("details")) each.open = true');
    expect(await sidewaysOverflow(page)).toBe(0);
    expect(await axeFindings(page)).toEqual([]);
    expect(complaints).toEqual([]);
  });

  it.each(["phone", "desk"] as const)(
    "a screenshot on a %s shows the title, then words, then a drawing",
    async (screen) => {
      await using opened = await openPage(browser, pages.report, { screen, colours: "light" });
      const { page } = opened;
      const first = await page.screenshot();
      expect(await inkOf(page, first)).toBeGreaterThan(0.02);
      expect(await page.locator("h1").isVisible()).toBe(true);
      // The recommendation is what is read first.
      const advice = await page.locator("#recommendation > p").first().boundingBox();
      expect(advice!.y).toBeLessThan(1.3 * SCREENS[screen].height);
      const drawing = page.locator("#accuracy svg[role=img]:visible").first();
      await drawing.scrollIntoViewIfNeeded();
      const box = (await drawing.boundingBox())!;
      expect(box.width).toBeGreaterThan(0.7 * SCREENS[screen].width);
      expect(box.x + box.width).toBeLessThanOrEqual(SCREENS[screen].width);
      expect(await inkOf(page, await drawing.screenshot())).toBeGreaterThan(0.02);
      // Text of a drawing that was scaled down to a phone's width could not be read.
      const size = await drawing
        .locator("text")
        .first()
        .evaluate((element) => {
          const { height } = (
            element as unknown as { getBoundingClientRect(): { height: number } }
          ).getBoundingClientRect();
          return height;
        });
      expect(size).toBeGreaterThan(9);
    },
  );

  it("draws every number of the data where it belongs", async () => {
    await using opened = await openPage(browser, pages.report, { screen: "desk", colours: "light" });
    // Of the first drawing, per method in order: a mark a layer, told by its title, at its height.
    const marks = await opened.page.evaluate(`[...document.querySelectorAll("#accuracy .wide svg")[0]
      .querySelectorAll("title")].map((title) => {
        const mark = title.parentNode;
        const [, x, y] = /translate\\(([-\\d.]+),([-\\d.]+)\\)/.exec(mark.getAttribute("transform")) ??
          [0, mark.getAttribute("cx"), mark.getAttribute("cy")];
        return [title.textContent, Number(x), Number(y)];
      })`);
    const found = marks as [string, number, number][];
    const rows = report.rows.filter(({ layers }) => layers?.length === 1);
    expect(found).toHaveLength(rows.length);
    // Heights are a straight line of the numbers: two of them give it, all others lie on it.
    const heights = rows.map(({ method, layers, top1 }) => {
      const { mean, low, high } = top1!;
      const [, , y] = found.find(([title]) => title.startsWith(`${method}, layer ${layers![0]}:`))!;
      const text = [mean, low, high].map((value) => (100 * value).toFixed(1));
      expect(found.map(([title]) => title)).toContain(
        `${method}, layer ${layers![0]}: ${text[0]}% (${text[1]} to ${text[2]})`,
      );
      return [mean, y] as const;
    });
    const [lowest, highest] = [
      heights.reduce((a, b) => (b[0] < a[0] ? b : a)),
      heights.reduce((a, b) => (b[0] > a[0] ? b : a)),
    ];
    const slope = (highest[1] - lowest[1]) / (highest[0] - lowest[0]);
    expect(slope).toBeLessThan(0);
    for (const [mean, y] of heights) expect(y).toBeCloseTo(lowest[1] + slope * (mean - lowest[0]), 0);
    // And the table behind it.
    const cells = await opened.page
      .locator("#accuracy table")
      .first()
      .locator("tbody tr")
      .evaluateAll((all) =>
        (all as unknown as { querySelectorAll(name: string): Iterable<{ textContent: string }> }[]).map((row) =>
          [...row.querySelectorAll("th, td")].map(({ textContent }) => textContent),
        ),
      );
    for (const [name, ...numbers] of cells) {
      const own = rows.filter(({ method }) => method === name);
      expect(numbers).toEqual(own.map(({ top1 }) => (100 * top1!.mean).toFixed(1)));
    }
  });

  it("is used with the keyboard: links, tables that scroll, and what is folded", async () => {
    await using opened = await openPage(browser, pages.report, { screen: "phone", colours: "light" });
    const { page } = opened;
    await page.keyboard.press("Tab");
    expect(await focused(page)).toContain("Skip to the content");
    await page.keyboard.press("Tab");
    expect(await focused(page)).toBe("Recommendation");
    const summary = page.locator("details summary").first();
    await summary.focus();
    await page.keyboard.press("Enter");
    expect(await page.locator("details").first().getAttribute("open")).not.toBeNull();
    await page.keyboard.press("Tab");
    expect(await page.evaluate("document.activeElement.className")).toBe("scroll");
  });

  it("leads from a kernel's point to its row", async () => {
    await using opened = await openPage(browser, pages.bench, { screen: "desk", colours: "light" });
    const { page } = opened;
    const point = page.locator(".wide a[href='#row-2']");
    expect(await point.getAttribute("aria-label")).toContain("matmul down");
    await point.focus();
    await page.keyboard.press("Enter");
    expect(await page.evaluate("document.querySelector('tr:target').id")).toBe("row-2");
  });
});

/** Lightness of the page's ground and of its text, 0 to 255. */
async function colours(page: Page): Promise<number[]> {
  const found = await page.evaluate(
    "(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))",
  );
  return (found as string[]).map((colour) => {
    const parts = (colour.match(/\d+/g) ?? []).slice(0, 3).map(Number);
    return parts.reduce((sum, part) => sum + part, 0) / 3;
  });
}

function focused(page: Page): Promise<unknown> {
  return page.evaluate("document.activeElement.textContent");
}

/** The share of a picture's pixels that are not its ground, read back in the browser itself. */
async function inkOf(page: Page, png: Uint8Array): Promise<number> {
  const share = await page.evaluate(`(async () => {
    const bytes = Uint8Array.from(atob("${Buffer.from(png).toString("base64")}"), (c) => c.charCodeAt(0));
    const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const canvas = new OffscreenCanvas(picture.width, picture.height);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const { data } = context.getImageData(0, 0, picture.width, picture.height);
    let ink = 0;
    for (let i = 0; i < data.length; i += 4)
      if (Math.abs(data[i] - data[0]) + Math.abs(data[i + 1] - data[1]) + Math.abs(data[i + 2] - data[2]) > 24) ink++;
    return ink / (data.length / 4);
  })()`);
  return share as number;
}
