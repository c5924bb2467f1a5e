/**
 * Writes a checkpoint with the shape of a Llama 2 7B cut to some blocks, random weights in bf16, one shard a block, and
 * the demo model's tokenizer:
 *
 *     npx tsx test/large/make-llama-shape.ts DIR [BLOCKS]
 *
 * 8 blocks (the default) take 3.5 GB. Not committed, and read by no test: `measure.ts` beside this file uses it.
 */
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { seededRandom } from "../../kernels/random.ts";
import { encodeFloats } from "../../weights/floats.ts";
import { writeSafetensors } from "../../weights/safetensors-writer.ts";

const [directory, blocks = "8"] = process.argv.slice(2);
if (directory === undefined) throw new Error("give the folder to write into");
const layers = Number(blocks);
const [hidden, ffn, heads, vocab] = [4096, 11008, 32, 32000];

/** Random values with a deviation of about 0.02, repeated from a table of 2^20: a tensor of its own for each offset. */
const random = seededRandom(1);
const noise = encodeFloats(
  Float32Array.from({ length: 2 ** 20 }, () => 0.07 * (random() - 0.5)),
  "BF16",
);
let offset = 0;

function matrix(name: string, n: number, k: number) {
  const bytes = new Uint8Array(2 * n * k);
  offset = (offset + 2 * 7919) % noise.byteLength;
  for (let at = 0; at < bytes.byteLength; ) {
    const from = at === 0 ? offset : 0;
    const part = noise.subarray(from, Math.min(noise.byteLength, from + bytes.byteLength - at));
    bytes.set(part, at);
    at += part.byteLength;
  }
  return { name, dtype: "BF16", shape: [n, k], bytes } as const;
}

function ones(name: string) {
  return {
    name,
    dtype: "BF16",
    shape: [hidden],
    bytes: encodeFloats(new Float32Array(hidden).fill(1), "BF16"),
  } as const;
}

await mkdir(directory, { recursive: true });
const weightMap: Record<string, string> = {};
const shards = layers + 1;
for (let shard = 0; shard < shards; shard++) {
  const file = `model-${String(shard + 1).padStart(5, "0")}-of-${String(shards).padStart(5, "0")}.safetensors`;
  const at = `model.layers.${shard - 1}.`;
  const tensors =
    shard === 0
      ? [
          matrix("model.embed_tokens.weight", vocab, hidden),
          ones("model.norm.weight"),
          matrix("lm_head.weight", vocab, hidden),
        ]
      : [
          ones(`${at}input_layernorm.weight`),
          ones(`${at}post_attention_layernorm.weight`),
          ...["q", "k", "v", "o"].map((name) => matrix(`${at}self_attn.${name}_proj.weight`, hidden, hidden)),
          matrix(`${at}mlp.gate_proj.weight`, ffn, hidden),
          matrix(`${at}mlp.up_proj.weight`, ffn, hidden),
          matrix(`${at}mlp.down_proj.weight`, hidden, ffn),
        ];
  await writeSafetensors(join(directory, file), tensors);
  for (const { name } of tensors) weightMap[name] = file;
}
await writeFile(
  join(directory, "model.safetensors.index.json"),
  JSON.stringify({ metadata: {}, weight_map: weightMap }),
);
const config = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: hidden,
  intermediate_size: ffn,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: heads,
  vocab_size: vocab,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  torch_dtype: "bfloat16",
  tie_word_embeddings: false,
};
await writeFile(join(directory, "config.json"), JSON.stringify(config));
const demo = new URL("../../weights/demo/", import.meta.url);
for (const name of ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]) {
  await copyFile(new URL(name, demo), join(directory, name));
}
