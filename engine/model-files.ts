/** A model, opened: headers and config, no tensor read, no GPU. */
import { existsSync } from "node:fs";
import { StratumError } from "../errors.ts";
import { type ChatTemplate, loadChatTemplate } from "../weights/chat-template.ts";
import { type Checkpoint, openCheckpoint } from "../weights/checkpoint.ts";
import { readConfigFile } from "../weights/config.ts";
import { type HubOptions, openHubModel } from "../weights/hub.ts";
import { type HubName, parseHubName } from "../weights/hub-name.ts";
import { checkVocabulary, loadTokenizer, type Tokenizer } from "../weights/tokenizer.ts";
import type { ModelSpec, WeightForm } from "./decoder.ts";
import { describeModel, modelSpec } from "./family.ts";

export interface ModelFiles extends AsyncDisposable {
  /** The folder; of a model of the hub its folder in the cache. */
  readonly directory: string;
  /** What names the model again: the folder, or `id@commit` of a model of the hub. */
  readonly name: string;
  /** Whether `name` says which bytes these are, as that of a model of the hub does. */
  readonly pinned: boolean;
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  /** Loaded on first use. @throws {StratumError} `tokenizer/...` */
  tokenizer(): Promise<Tokenizer>;
  /** Loaded on first use; null where the model has none. @throws {StratumError} `template/...` */
  template(): Promise<ChatTemplate | null>;
}

export interface OpenModelOptions extends HubOptions {
  /** In what form its matrices will be held on the GPU; default `stored`. */
  readonly weights?: WeightForm | undefined;
}

/**
 * Opens a Hugging Face model: a directory, or a model of the hub, of which only what is asked for is downloaded.
 * @param model a path, or where no such path exists `org/name` or `org/name@revision`
 * @throws {StratumError} `model/...`, `config/...`, `safetensors/...`, `hub/...`
 */
export async function openModelFiles(model: string, options: OpenModelOptions = {}): Promise<ModelFiles> {
  const hub = existsSync(model) ? null : await openHubModel(hubName(model), options);
  const directory = hub?.directory ?? model;
  // The configuration first: an unsupported family is refused by name before anything else is read.
  const architecture = describeModel(await readConfigFile(directory));
  await hub?.fetchSmallFiles();
  const checkpoint = await openCheckpoint(directory, hub?.remote);
  try {
    const spec = modelSpec(architecture, checkpoint, options.weights);
    let tokenizer: Promise<Tokenizer> | undefined;
    let template: Promise<ChatTemplate | null> | undefined;
    return {
      directory,
      name: hub?.name ?? directory,
      pinned: hub !== null,
      checkpoint,
      spec,
      tokenizer() {
        tokenizer ??= loadTokenizer(directory).then((loaded) => {
          checkVocabulary(loaded, spec.config.vocab);
          return loaded;
        });
        return tokenizer;
      },
      template() {
        template ??= loadChatTemplate(directory);
        return template;
      },
      [Symbol.asyncDispose]: () => checkpoint.close(),
    };
  } catch (cause) {
    await checkpoint.close();
    throw cause;
  }
}

function hubName(model: string): HubName {
  const name = parseHubName(model);
  if (name !== null) return name;
  throw new StratumError(
    "model/missing",
    `there is no folder ${model}`,
    "give a folder that holds config.json and *.safetensors, or a model of the Hugging Face hub as org/name or org/name@revision",
  );
}
