/**
 * Whether another process is still there. A number names a process only where it was given: containers that share a
 * folder count from 1 each, often under one host name, and a restarted one gives the same numbers out again.
 */
import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { isSystemError } from "./json.ts";

/** Whether no process of this machine has a number, or only what is left of one until its parent asks how it ended. */
export function isGone(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (cause) {
    return isSystemError(cause, "ESRCH");
  }
  // In a container often nobody asks.
  return /^[ZX]$/.test(statOf(pid)?.[0] ?? "");
}

/** What tells a process from others that have its number: when it was started, by the kernel's count; null where nothing says it. */
export function startOf(pid: number): string | null {
  return statOf(pid)?.[STARTED] ?? null;
}

/**
 * Where this process's number means this process: a boot of a kernel and a namespace of it. The kernel may give a
 * namespace the number of one that has ended, with all its processes, so a start tells the rest. Null where nothing says it.
 */
export function placeOfProcess(): string | null {
  if (process.platform !== "linux") return hostname().replaceAll(" ", "_");
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
    return `${boot}/${readlinkSync("/proc/self/ns/pid")}`;
  } catch {
    return null;
  }
}

/** Of `/proc/PID/stat`'s fields behind the name, `man 5 proc`. */
const STARTED = 19;

/** `pid (name) state ...`, where a name may hold anything. */
function statOf(pid: number): string[] | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    return text.slice(text.lastIndexOf(")") + 2).split(" ");
  } catch {
    return null;
  }
}
