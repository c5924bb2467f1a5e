/** What lies in a folder at every instant of some work: what a process that is lost then leaves behind. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isSystemError } from "../../weights/json.ts";

/** The files of a folder, in base64. */
export type Contents = Readonly<Record<string, string>>;

export const contents = (place: string): Contents =>
  Object.fromEntries(readdirSync(place).map((name) => [name, readFileSync(join(place, name)).toString("base64")]));

/** Makes a folder that holds these files. */
export function layOut(place: string, files: Contents): void {
  mkdirSync(place);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(place, name), Buffer.from(text, "base64"));
}

/**
 * Looks at every turn of the event loop: nothing but what is under way in the system is done meanwhile, and a file that
 * gets another name there is looked for once more.
 * @returns what was seen, each once, in order
 */
export async function instantsOf(place: string, work: () => Promise<void>): Promise<readonly Contents[]> {
  const seen = new Map<string, Contents>();
  let watching = true;
  const watch = () => {
    if (!watching) return;
    try {
      const found = contents(place);
      seen.set(JSON.stringify(found), found);
    } catch (cause) {
      if (!isSystemError(cause, "ENOENT")) throw cause;
    }
    setImmediate(watch);
  };
  watch();
  await work();
  watching = false;
  return [...seen.values()];
}
