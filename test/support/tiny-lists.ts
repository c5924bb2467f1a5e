/** Many small lists for runs that are disturbed: lines of several lengths, some that are no lists. */
import { writeFile } from "node:fs/promises";
import { seededRandom } from "../../kernels/random.ts";

const WORDS = ["red", "a cat", "never", "water on oil", "close the lid", "call for help", "I do not know", "run"];

/** Writes lists, one a line; every 500th line is none. */
export async function writeTinyLists(path: string, count: number, seed = 1): Promise<void> {
  const random = seededRandom(seed);
  const phrase = () =>
    Array.from({ length: 1 + Math.floor(random() * 6) }, () => WORDS[Math.floor(random() * WORDS.length)]).join(" ");
  const lines = Array.from({ length: count }, (_, i) => {
    const candidates = Array.from({ length: 2 + Math.floor(random() * 3) }, phrase);
    return i % 500 === 250 ? "{" : JSON.stringify({ id: `q${i}`, instruction: phrase(), candidates });
  });
  await writeFile(path, `${lines.join("\n")}\n`);
}
