/**
 * The embedded software adapter: SwiftShader and a Vulkan loader, out of the npm registry alone. The optional package
 * `@sparticuz/chromium` carries both in `bin/swiftshader.tar.br`; they are unpacked once into a cache folder.
 */
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { constants, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import { extract } from "tar";
import { messageOf, StratumError } from "../errors.ts";
import { cacheFolder } from "../weights/cache-folder.ts";

const PACKAGE = "@sparticuz/chromium";
const LOADER = "libvulkan.so.1";
const DRIVER = "libvk_swiftshader.so";
const MANIFEST = "stratum_icd.json";
const SIZES = "sizes.json";
/** glibc's RTLD_NODELETE, which node:os does not name. */
const RTLD_NODELETE = 0x1000;

/** Where SwiftShader runs: the package holds Linux x64 binaries only. */
export function embeddedSupported(): boolean {
  return process.platform === "linux" && process.arch === "x64";
}

function unsupported(): StratumError {
  return new StratumError(
    "adapter/no-embedded",
    `the embedded adapter exists for Linux x64 only; this is ${process.platform} ${process.arch}`,
    "use --adapter system: macOS (Metal) and Windows (D3D12) need no driver of ours; on Linux arm64 install a Vulkan driver (for example the package mesa-vulkan-drivers, version 24 or later)",
  );
}

/** The archive inside the optional package, and the package's version. */
function findArchive(): { archive: string; version: string } {
  const require = createRequire(import.meta.url);
  let entry: string;
  try {
    entry = require.resolve(PACKAGE);
  } catch (cause) {
    throw new StratumError(
      "adapter/no-embedded",
      `the optional package ${PACKAGE}, which carries the embedded adapter, is not installed`,
      "run `npm ci` (or `npm install`) without --omit=optional, or install a Vulkan driver and use --adapter system",
      cause,
    );
  }
  let folder = dirname(entry);
  while (!existsSync(join(folder, "bin", "swiftshader.tar.br"))) {
    const up = dirname(folder);
    if (up === folder) {
      throw new StratumError(
        "adapter/no-embedded",
        `${PACKAGE} is installed at ${dirname(entry)} but holds no bin/swiftshader.tar.br`,
        "reinstall it: npm install @sparticuz/chromium@147",
      );
    }
    folder = up;
  }
  const manifest = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { version?: unknown };
  return { archive: join(folder, "bin", "swiftshader.tar.br"), version: String(manifest.version) };
}

/** A folder that may hold the unpacked adapter. */
interface CacheRoot {
  readonly folder: string;
  /** Others can write beside it: what lies there is trusted only where it is ours alone. */
  readonly shared: boolean;
}

/** Cache folders to try, best first. */
function cacheRoots(): CacheRoot[] {
  return [
    { folder: cacheFolder(), shared: false },
    { folder: join(tmpdir(), `stratum-cache-${process.getuid?.() ?? 0}`), shared: true },
  ];
}

/** `mkdir -p`; Node's own loops for ever where a file system answers that a parent which exists does not (/proc). */
function makeFolder(path: string): void {
  if (existsSync(path)) return;
  if (dirname(path) !== path) makeFolder(dirname(path));
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (cause) {
    // Another process may have been first.
    if (!existsSync(path)) throw cause;
  }
}

/** Code is loaded from this folder: nobody else may have made it or be able to write to it. */
function checkOwner(path: string): void {
  const { uid, mode } = lstatSync(path);
  if (uid !== process.getuid?.() || (mode & 0o022) !== 0 || !lstatSync(path).isDirectory()) {
    throw new Error("the folder belongs to somebody else, or others can write to it");
  }
}

/** What was unpacked is whole: every file is there with the size that it was written with. */
function isWhole(folder: string): boolean {
  try {
    const sizes = JSON.parse(readFileSync(join(folder, SIZES), "utf8")) as Record<string, number>;
    return [LOADER, DRIVER, MANIFEST].every((name) => statSync(join(folder, name)).size === sizes[name]);
  } catch {
    return false;
  }
}

/** Unpacks the archive into `folder` by a rename, so that two processes may race and a killed one leaves nothing half done. */
function unpack(archive: string, folder: string): void {
  const scratch = mkdtempSync(`${folder}.tmp-`);
  try {
    const tarFile = join(scratch, "swiftshader.tar");
    writeFileSync(tarFile, brotliDecompressSync(readFileSync(archive)));
    extract({
      file: tarFile,
      cwd: scratch,
      sync: true,
      preserveOwner: false,
      filter: (path) => [LOADER, DRIVER].includes(path),
    });
    rmSync(tarFile);
    // The manifest in the archive names the library by a relative path, which the loader looks up in its own search path.
    const manifest = {
      file_format_version: "1.0.0",
      ICD: { library_path: join(folder, DRIVER), api_version: "1.3.0" },
    };
    writeFileSync(join(scratch, MANIFEST), JSON.stringify(manifest));
    const sizes = [LOADER, DRIVER, MANIFEST].map((name) => [name, statSync(join(scratch, name)).size]);
    writeFileSync(join(scratch, SIZES), JSON.stringify(Object.fromEntries(sizes)));
    // A damaged folder makes room first; of two processes that do so, one finds the other's.
    if (existsSync(folder)) renameSync(folder, join(scratch, "damaged"));
    try {
      renameSync(scratch, folder);
    } catch (cause) {
      if (!isWhole(folder)) throw cause;
    }
    rmSync(join(folder, "damaged"), { recursive: true, force: true });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/**
 * Unpacks SwiftShader where needed.
 * @returns the folder that holds the loader, the driver and its manifest
 * @throws {StratumError} `adapter/no-embedded` on another platform, without the package, or where no folder can be written
 */
export function unpackEmbedded(): string {
  if (!embeddedSupported()) throw unsupported();
  const { archive, version } = findArchive();
  const failures: string[] = [];
  for (const root of cacheRoots()) {
    const folder = join(root.folder, `swiftshader-${version}`);
    try {
      makeFolder(root.folder);
      if (root.shared) checkOwner(root.folder);
      if (!isWhole(folder)) unpack(archive, folder);
      return folder;
    } catch (cause) {
      failures.push(`${folder}: ${messageOf(cause)}`);
    }
  }
  throw new StratumError(
    "adapter/no-embedded",
    `the embedded adapter could not be unpacked (${failures.join("; ")})`,
    "set XDG_CACHE_HOME to a folder that can be written (it needs 15 MB)",
  );
}

const LOADER_VARIABLES = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] as const;

/**
 * Makes the embedded driver the one that the next Dawn instance of this process finds: sets the Vulkan loader's
 * variables and loads the embedded loader under its own name, for systems without one.
 * @returns a function that puts the variables back, to be called when the adapter has been requested
 */
export function activateEmbedded(): () => void {
  const folder = unpackEmbedded();
  const before = LOADER_VARIABLES.map((name) => [name, process.env[name]] as const);
  for (const name of LOADER_VARIABLES) process.env[name] = join(folder, MANIFEST);
  const { RTLD_NOW, RTLD_GLOBAL } = constants.dlopen;
  try {
    process.dlopen({ exports: {} }, join(folder, LOADER), RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
  } catch (cause) {
    // dlopen has done its work when Node finds that the library is no addon.
    if (!/did not self-register/.test(messageOf(cause))) {
      throw new StratumError(
        "adapter/no-embedded",
        `the embedded Vulkan loader could not be loaded: ${messageOf(cause)}`,
        `remove ${folder} so that it is unpacked again; musl systems (Alpine) are not supported by the embedded adapter`,
        cause,
      );
    }
  }
  return () => {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  };
}
