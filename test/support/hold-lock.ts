/** Takes a lock and says so, then holds it until stdin ends: `node --import tsx hold-lock.ts PATH STALE_MS`. Refused, it says by whom. */
import { withLock } from "../../weights/lock.ts";

const [path = "", staleMs = ""] = process.argv.slice(2);
const say = (what: string) => process.stdout.write(`${what}\n`);
await withLock(
  path,
  async () => {
    say(`held by ${process.pid}`);
    process.stdin.resume();
    await new Promise((resolve) => process.stdin.on("end", resolve));
  },
  {
    beatMs: 100,
    staleMs: Number(staleMs),
    onWait({ pid, lives }) {
      say(`${lives ? "lives" : "watched"}: ${pid}`);
      if (lives) process.exit(2);
    },
  },
);
