/** Where everything lies that can be made again: unpacked drivers, features, measured kernels. */
import { homedir } from "node:os";
import { join } from "node:path";

/** `$XDG_CACHE_HOME/stratum` where that is an absolute path, else `~/.cache/stratum`. */
export function cacheFolder(): string {
  const xdg = process.env["XDG_CACHE_HOME"];
  return join(xdg?.startsWith("/") ? xdg : join(homedir(), ".cache"), "stratum");
}
