/** The files of a model's folder: those in it, and what the hub cache links into it. */
import { lstat, realpath } from "node:fs/promises";
import { basename, dirname, join, sep } from "node:path";
import { StratumError } from "../errors.ts";

/**
 * The path of a file of a model's folder. A link may lead to a file within the folder, or to a blob of the hub cache
 * (`models--org--name/blobs`, and `blobs` beside the `snapshots` that the folder is one of): a folder comes from a stranger,
 * and is no way to the rest of the disk. Of a file that is not there, nothing is said.
 *
 * @param name without folders
 * @throws StratumError `model/outside-link`
 */
export async function modelFile(directory: string, name: string): Promise<string> {
  const path = join(directory, name);
  const found = await lstat(path).catch(() => null);
  if (!found?.isSymbolicLink()) return path;
  const [target, home] = await Promise.all([path, directory].map((link) => realpath(link).catch(() => null)));
  if (target === null || home === null || isWithin(target, home) || isBlob(target, home)) return path;
  throw new StratumError(
    "model/outside-link",
    `${path} is a link to ${target}, outside the model's folder`,
    "copy the file into the folder, or give the folder that it lies in",
  );
}

function isWithin(path: string, folder: string): boolean {
  return path.startsWith(folder.endsWith(sep) ? folder : folder + sep);
}

function isBlob(target: string, home: string): boolean {
  const blobs = dirname(target);
  if (basename(blobs) !== "blobs") return false;
  const snapshots = dirname(home);
  const ofThisFolder = basename(snapshots) === "snapshots" && dirname(snapshots) === dirname(blobs);
  return ofThisFolder || /^models--./.test(basename(dirname(blobs)));
}
