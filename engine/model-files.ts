/** A model directory, opened: headers and config, no tensor read, no GPU. */
import { existsSync } from "node:fs";
import { StratumError } from "../errors.ts";
import { type ChatTemplate, loadChatTemplate } from "../weights/chat-template.ts";
import { type Checkpoint, openCheckpoint } from "../weights/checkpoint.ts";
import { readModelConfig } from "../weights/config.ts";
import { checkVocabulary, loadTokenizer, type Tokenizer } from "../weights/tokenizer.ts";
import { type ModelSpec, modelSpec } from "./family.ts";

export interface ModelFiles extends AsyncDisposable {
  readonly directory: string;
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  /** Loaded on first use. @throws {StratumError} `tokenizer/...` */
  tokenizer(): Promise<Tokenizer>;
  /** Loaded on first use; null where the model has none. @throws {StratumError} `template/...` */
  template(): Promise<ChatTemplate | null>;
}

/**
 * Opens a Hugging Face model directory.
 * @throws {StratumError} `model/...`, `config/...`, `safetensors/...`
 */
export async function openModelFiles(directory: string): Promise<ModelFiles> {
  if (!existsSync(directory)) {
    throw new StratumError(
      "model/missing",
      `there is no folder ${directory}`,
      /^[\w.-]+\/[\w.-]+$/.test(directory)
        ? "give a folder that holds config.json and *.safetensors; models are not downloaded here: get it first, for example with `hf download`"
        : "give a folder that holds config.json and *.safetensors",
    );
  }
  // The configuration first: an unsupported family is refused by name before anything else is read.
  const config = await readModelConfig(directory);
  const checkpoint = await openCheckpoint(directory);
  try {
    const spec = modelSpec(config, checkpoint);
    let tokenizer: Promise<Tokenizer> | undefined;
    let template: Promise<ChatTemplate | null> | undefined;
    return {
      directory,
      checkpoint,
      spec,
      tokenizer() {
        tokenizer ??= loadTokenizer(directory).then((loaded) => {
          checkVocabulary(loaded, config.vocab);
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
