/** Names of models on the Hugging Face hub: `org/name` or a legacy `name`, with `@revision` behind it or none. */

export interface HubName {
  /** `org/name`, or a legacy name without an organisation. */
  readonly id: string;
  /** A branch, a tag, `refs/pr/N` or a commit. */
  readonly revision: string;
}

const DEFAULT_REVISION = "main";
const MAX_ID = 96;
const MAX_REVISION = 200;

/** As the hub allows them: words of letters, digits, `-`, `_` and `.`, which begin and end with none of `-` and `.`. */
const ID = /^(?:\w(?:[\w.-]*\w)?\/)?\w(?:[\w.-]*\w)?$/;
const REVISION = /^[\w][\w.+-]*(?:\/[\w][\w.+-]*)*$/;

/** A whole commit's SHA, which no later push changes. */
const COMMIT = /^[0-9a-f]{40}$/;

/** Whether a revision is a commit. */
export function isCommit(revision: string): boolean {
  return COMMIT.test(revision);
}

/** The name that a text spells, or null where it cannot be one: then it can only have been meant as a path. */
export function parseHubName(text: string): HubName | null {
  const at = text.indexOf("@");
  const id = at < 0 ? text : text.slice(0, at);
  const revision = at < 0 ? DEFAULT_REVISION : text.slice(at + 1);
  if (!ID.test(id) || id.length > MAX_ID || id.includes("--") || id.includes("..") || id.endsWith(".git")) return null;
  // It becomes a path below refs/: no empty or dotted step.
  if (!REVISION.test(revision) || revision.length > MAX_REVISION || revision.includes("..")) return null;
  return { id, revision };
}
