/** A Redis of a test's own: Debian's redis-server on a free port, without files, gone when it is disposed of. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";

export interface RedisServer extends AsyncDisposable {
  readonly url: string;
  readonly pid: number;
}

/** @throws {Error} that says what to install where there is no redis-server */
export async function startRedis(): Promise<RedisServer> {
  const port = await freePort();
  const child = spawn(
    "redis-server",
    ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
    {
      stdio: ["ignore", "pipe", "inherit"],
    },
  );
  await ready(child);
  return {
    url: `redis://127.0.0.1:${port}`,
    pid: child.pid ?? 0,
    async [Symbol.asyncDispose]() {
      child.kill();
      if (child.exitCode === null) await once(child, "exit");
    },
  };
}

async function ready(child: ChildProcess): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    let text = "";
    child.once("error", (cause) => {
      reject(
        new Error("the pool's tests need redis-server, and it is not there: apt-get install redis-server", { cause }),
      );
    });
    child.once("exit", (code) => reject(new Error(`redis-server ended with ${code}: ${text}`)));
    child.stdout?.on("data", (chunk: Buffer) => {
      text += chunk.toString();
      if (/ready to accept connections/i.test(text)) resolve();
    });
  });
  child.removeAllListeners("exit");
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}
