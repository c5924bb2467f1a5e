/** The process of a peer: loads the module that its argument names, and answers the orchestrator one call at a time. */
import { activateEmbedded } from "../engine/embedded.ts";
import { messageOf, StratumError } from "../errors.ts";
import type { PeerModule, Prepared, Reply, Request } from "./protocol.ts";

let prepared: Prepared | undefined;

async function answer(request: Request): Promise<Reply> {
  if (request.call === "prepare") {
    // Before any library starts its Dawn: the Vulkan loader reads its variables once.
    if (request.adapter.source === "embedded") activateEmbedded();
    const peer = (await import(process.argv[2])) as PeerModule;
    prepared = await peer.prepare(request.job, request.adapter);
    return { adapter: prepared.adapter };
  }
  if (prepared === undefined) throw new StratumError("usage/peer", "run before prepare", "prepare the job first");
  return { result: await prepared.run(request.full) };
}

process.on("message", (request: Request) => {
  answer(request).then(
    (reply) => process.send?.(reply),
    (thrown) =>
      process.send?.({ error: messageOf(thrown), fix: thrown instanceof StratumError ? thrown.fix : null } as Reply),
  );
});
// The orchestrator is gone.
process.on("disconnect", () => process.exit(0));
