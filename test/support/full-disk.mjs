/**
 * Preloaded (`node --import`): a disk with so many bytes left (FULL_DISK_BYTES) for whatever is written through file
 * handles; the write that meets its end is done in part, as by a file system. It takes no rights that a mount would.
 */
import { open } from "node:fs/promises";

let left = Number(process.env.FULL_DISK_BYTES);
const handle = await open("/dev/null", "w");
const { prototype } = handle.constructor;
await handle.close();

const full = () => Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC", errno: -28 });
const { write } = prototype;

prototype.write = async function (data, offset = 0, length = data.byteLength - offset, position = null) {
  const fits = Math.min(left, length);
  left -= fits;
  const done = fits > 0 ? await write.call(this, data, offset, fits, position) : { bytesWritten: 0 };
  if (fits < length) throw full();
  return done;
};
for (const name of ["writeFile", "appendFile"]) {
  prototype[name] = async function (data) {
    const bytes = typeof data === "string" ? Buffer.from(data) : data;
    await this.write(bytes, 0, bytes.byteLength, null);
  };
}
