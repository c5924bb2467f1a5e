/**
 * A real browser for pages. `@sparticuz/chromium`, which carries the embedded adapter, carries a headless Chromium too,
 * with the libraries and fonts that it needs: nothing else has to be installed. Elsewhere a Chromium of the system serves,
 * named by CHROMIUM or in its usual place.
 */
import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { pathToFileURL } from "node:url";
import { createBrotliDecompress } from "node:zlib";
import { type Browser, chromium, type Page } from "playwright-core";
import { extract } from "tar";
import { cacheFolder } from "../../weights/cache-folder.ts";

const require = createRequire(import.meta.url);
const SYSTEM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const ARGS = ["--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"];

/** The folder of the package's archives; undefined where the optional package is not installed. */
function packed(): string | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  try {
    let folder = dirname(require.resolve("@sparticuz/chromium"));
    while (!existsSync(join(folder, "bin", "chromium.br"))) {
      if (dirname(folder) === folder) return undefined;
      folder = dirname(folder);
    }
    return join(folder, "bin");
  } catch {
    return undefined;
  }
}

/** Unpacks the package's browser, once for all tests; a rename makes it whole or absent. */
async function unpacked(bin: string): Promise<string> {
  const { version } = JSON.parse(await readFile(join(bin, "..", "package.json"), "utf8")) as { version: string };
  const folder = join(cacheFolder(), `chromium-${version}`);
  if (existsSync(join(folder, "chromium"))) return folder;
  await mkdir(dirname(folder), { recursive: true });
  const scratch = await mkdtemp(`${folder}.tmp-`);
  try {
    for (const name of ["al2023", "fonts", "swiftshader"]) {
      await pipeline(
        createReadStream(join(bin, `${name}.tar.br`)),
        createBrotliDecompress(),
        extract({ cwd: scratch, preserveOwner: false }),
      );
    }
    await pipeline(
      createReadStream(join(bin, "chromium.br")),
      createBrotliDecompress(),
      createWriteStream(join(scratch, "chromium"), { mode: 0o755 }),
    );
    // Of two that unpack, one finds the other's.
    await rename(scratch, folder).catch((cause: unknown) => {
      if (!existsSync(join(folder, "chromium"))) throw cause;
    });
    return folder;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Why there is no browser here; undefined where there is one. */
export function noBrowser(): string | undefined {
  const named = process.env["CHROMIUM"];
  if (named !== undefined) return existsSync(named) ? undefined : `CHROMIUM names ${named}, which is not there`;
  if (packed() !== undefined || SYSTEM.some((path) => existsSync(path))) return undefined;
  return "no Chromium: @sparticuz/chromium is not installed, or this is not Linux x64, and there is none in /usr/bin";
}

/** Starts it. */
export async function openBrowser(): Promise<Browser> {
  const bin = packed();
  const named = process.env["CHROMIUM"] ?? (bin === undefined ? SYSTEM.find((path) => existsSync(path)) : undefined);
  if (named !== undefined) return chromium.launch({ executablePath: named, args: ARGS });
  if (bin === undefined) throw new Error(noBrowser());
  const folder = await unpacked(bin);
  // A system's own fonts come first; the package's serve where there are none.
  const fonts = existsSync("/etc/fonts/fonts.conf") ? {} : { FONTCONFIG_PATH: folder };
  const libraries = [join(folder, "lib"), process.env["LD_LIBRARY_PATH"]].filter(Boolean).join(":");
  return chromium.launch({
    executablePath: join(folder, "chromium"),
    args: [...ARGS, "--headless=shell"],
    env: { ...(process.env as Record<string, string>), ...fonts, LD_LIBRARY_PATH: libraries },
  });
}

/** As a phone and as a desk have them. */
export const SCREENS = {
  phone: { width: 390, height: 844 },
  desk: { width: 1280, height: 900 },
} as const;

/** A page from disk, and everything that it complained of or tried to fetch. */
export interface OpenedPage extends AsyncDisposable {
  readonly page: Page;
  /** Console messages, errors, and requests other than for the page itself. */
  readonly complaints: readonly string[];
}

/** Opens a file as a reader would. */
export async function openPage(
  browser: Browser,
  path: string,
  { screen, colours }: { readonly screen: keyof typeof SCREENS; readonly colours: "light" | "dark" },
): Promise<OpenedPage> {
  const context = await browser.newContext({ viewport: SCREENS[screen], colorScheme: colours });
  const page = await context.newPage();
  const complaints: string[] = [];
  const url = pathToFileURL(path).href;
  page.on("console", (message) => complaints.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => complaints.push(`error: ${error.message}`));
  page.on("request", (request) => {
    if (request.url() !== url) complaints.push(`request: ${request.url()}`);
  });
  await page.goto(url);
  return { page, complaints, [Symbol.asyncDispose]: () => context.close() };
}

/** What axe finds against WCAG 2.1 A and AA and its best practices: every violation, with the elements. */
export async function axeFindings(page: Page): Promise<string[]> {
  await page.addScriptTag({ path: require.resolve("axe-core/axe.min.js") });
  const { violations } = await page.evaluate(() =>
    (globalThis as unknown as { axe: { run(): Promise<AxeResults> } }).axe.run(),
  );
  return violations.flatMap(({ id, impact, help, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${impact} ${id} (${help}): ${target.join(" ")}: ${failureSummary}`),
  );
}

interface AxeResults {
  readonly violations: readonly {
    readonly id: string;
    readonly impact: string;
    readonly help: string;
    readonly nodes: readonly { readonly target: readonly string[]; readonly failureSummary: string }[];
  }[];
}

/** How far the page is wider than its screen; 0 where nothing has to be scrolled sideways. */
export function sidewaysOverflow(page: Page): Promise<number> {
  return page.evaluate(() => {
    const { scrollWidth, clientWidth } = (
      globalThis as unknown as { document: { documentElement: { scrollWidth: number; clientWidth: number } } }
    ).document.documentElement;
    return scrollWidth - clientWidth;
  });
}
