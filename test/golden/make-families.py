"""Tiny random checkpoints of every family with their hidden states: what families/ holds.

    python make-families.py families [NAME ...]
    python make-families.py --check families [NAME ...]

The first writes the folders of FAMILIES: config.json, safetensors, and in golden.safetensors for sequence i `ids_i` (T)
I32 and `hidden_i` (L+1, T, D) F32: index 0 what enters block 0, k the residual stream after k blocks, before the final
norm. They are Hugging Face transformers' states, in float64 from the stored (rounded) weights, with eager attention.

transformers takes some of its steps in float32 whatever the model's type: rotary tables, RMSNorm, softmax. Here they
are float64 too, and any other type fails. --check recomputes the states of the folders of a directory, and tells how
far they are from golden.safetensors and from what transformers computes unaided. Needs torch, transformers 5 and
safetensors.
"""

import contextlib
import json
import logging
import sys
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

LENGTHS = [1, 5, 17, 40]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
MIXED = [F32, F16, BF16]
ABSENT = object()


# The configurations.

# What the published files of every family say, in the spelling of transformers 4.
SHARED = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "pad_token_id": 0,
    "transformers_version": "4.48.0", "use_cache": True,
}  # fmt: skip
LLAMA = {
    **SHARED, "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "mlp_bias": False,
    "max_position_embeddings": 128, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
MISTRAL = {
    **SHARED, "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "max_position_embeddings": 128,
    "model_type": "mistral", "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN2 = {
    **SHARED, "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "max_position_embeddings": 128,
    "max_window_layers": 28, "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 64, "tie_word_embeddings": False, "use_sliding_window": False,
}  # fmt: skip
QWEN3 = {
    **QWEN2, "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "model_type": "qwen3",
    "rope_scaling": None, "sliding_window": None, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA2 = {
    **SHARED, "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 128, "model_type": "gemma2",
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
}  # fmt: skip
GEMMA3 = {
    **SHARED, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
    "cache_implementation": "hybrid", "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 256, "model_type": "gemma3_text", "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
}  # fmt: skip
PHI3 = {
    **SHARED, "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "embd_pdrop": 0.0, "hidden_act": "silu",
    "model_type": "phi3", "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 1,
    "embd_pdrop": 0.1, "eos_token_id": 1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
}  # fmt: skip
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 48, "model_type": "gpt_neox",
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "transformers_version": "4.24.0",
    "use_cache": True, "use_parallel_residual": True,
}  # fmt: skip
OLMO2 = {
    **SHARED, "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "hidden_act": "silu",
    "max_position_embeddings": 128, "model_type": "olmo2", "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 500000, "tie_word_embeddings": False,
}  # fmt: skip
OLMO3 = {**OLMO2, "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "sliding_window": 6}
SMOLLM3 = {
    **SHARED, "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "hidden_act": "silu",
    "max_position_embeddings": 128, "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
    "no_rope_layer_interval": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False,
}  # fmt: skip
GEMMA3_VISION = {
    "hidden_size": 12, "image_size": 28, "intermediate_size": 16, "model_type": "siglip_vision_model",
    "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
GEMMA3_MULTIMODAL = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 72, "eoi_token_index": 73,
    "eos_token_id": [1, 106], "image_token_index": 74, "initializer_range": 0.02, "mm_tokens_per_image": 4,
    "model_type": "gemma3", "transformers_version": "4.50.0.dev0", "vision_config": GEMMA3_VISION,
}  # fmt: skip


def sizes(vocab, hidden, ffn, layers, heads, kv=ABSENT, head_dim=ABSENT):
    return {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head_dim,
    }  # fmt: skip


def gpt2_sizes(vocab, hidden, inner, layers, heads, positions):
    return {
        "vocab_size": vocab, "n_embd": hidden, "n_inner": inner, "n_layer": layers, "n_head": heads,
        "n_positions": positions,
    }  # fmt: skip


FULL, SLIDING = "full_attention", "sliding_attention"

# name -> config, the stored type (a list: the tensors take its types in turn), and:
#   five    config.json is what transformers 5 saves of it (rope_parameters, dtype, layer_types)
#   shards  stored in so many files, with an index
#   names   how the stored names differ from the model's, and which buffers are stored besides
FAMILIES = {
    # Llama. Linear scaling in its oldest spelling; the output head is the embedding, stored once.
    "llama-linear": {
        "config": {**LLAMA, **sizes(67, 36, 50, 2, 3, 1), "tie_word_embeddings": True,
                   "rope_scaling": {"factor": 2.5, "type": "linear"}},
        "dtype": F16,
    },
    # With DeepSeek's keys of YaRN: mscale is no common one.
    "llama-yarn": {
        "config": {**LLAMA, **sizes(64, 32, 45, 2, 2, 2), "rope_theta": 500.0, "rope_scaling": {
            "beta_fast": 4.0, "beta_slow": 0.5, "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 1.5,
            "original_max_position_embeddings": 32, "rope_type": "yarn", "truncate": False}},
        "dtype": BF16, "five": True,
    },
    "llama-yarn-factor": {
        "config": {**LLAMA, **sizes(64, 40, 48, 2, 2, 1), "rope_scaling": {
            "attention_factor": 1.25, "beta_fast": 4, "beta_slow": 0.5, "factor": 4.0,
            "original_max_position_embeddings": 64, "rope_type": "yarn"}, "max_position_embeddings": 256},
        "dtype": BF16,
    },
    # head_dim is no quotient; the three types in one file.
    "llama-bias": {
        "config": {**LLAMA, **sizes(65, 28, 43, 3, 4, 2, 10), "attention_bias": True, "mlp_bias": True},
        "dtype": MIXED, "five": True,
    },
    # Below max_position_embeddings dynamic scaling does nothing.
    "llama-dynamic-sharded": {
        "config": {**LLAMA, **sizes(64, 24, 40, 3, 2), "max_position_embeddings": 64,
                   "rope_scaling": {"factor": 2.0, "type": "dynamic"}},
        "dtype": F16, "shards": 3,
    },
    "mistral-head-dim": {
        "config": {**MISTRAL, **sizes(64, 40, 52, 2, 3, 1, 14)},
        "dtype": BF16,
    },
    # Hidden size 33; num_key_value_heads is 8 where the file does not say.
    "mistral-default-kv": {
        "config": {**MISTRAL, **sizes(64, 33, 47, 2, 8, ABSENT, 6), "sliding_window": 5},
        "dtype": F16,
    },
    # transformers calls this ministral, and says so in the files it saves.
    "mistral-layer-types": {
        "config": {**MISTRAL, **sizes(64, 22, 31, 2, 2, 1, 8), "layer_types": [SLIDING, FULL], "sliding_window": 5},
        "dtype": F16,
    },
    # Qwen 2: full attention in the first max_window_layers layers.
    "qwen2-window": {
        "config": {**QWEN2, **sizes(71, 30, 41, 3, 3, 1), "max_window_layers": 1, "sliding_window": 6,
                   "use_sliding_window": True},
        "dtype": BF16,
    },
    "qwen2-layer-types": {
        "config": {**QWEN2, **sizes(64, 28, 41, 3, 2, 1), "layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 4,
                   "use_sliding_window": True},
        "dtype": F16, "five": True,
    },
    # As Qwen2.5's model card asks for.
    "qwen2-yarn": {
        "config": {**QWEN2, **sizes(64, 40, 41, 2, 2, 1), "rope_scaling": {
            "factor": 4.0, "original_max_position_embeddings": 32, "type": "yarn"}},
        "dtype": BF16,
    },
    "qwen3-window": {
        "config": {**QWEN3, **sizes(64, 35, 45, 3, 3, 1, 18), "max_window_layers": 2, "sliding_window": 7,
                   "use_sliding_window": True},
        "dtype": BF16,
    },
    "qwen3-bias-yarn": {
        "config": {**QWEN3, **sizes(66, 27, 45, 2, 4, 2, 14), "attention_bias": True, "rope_scaling": {
            "factor": 4.0, "original_max_position_embeddings": 32, "rope_type": "yarn"}},
        "dtype": F16, "five": True,
    },
    # The embeddings' factor is the root of 30 and of 26; queries are scaled by another size than head_dim.
    "gemma2-scale": {
        "config": {**GEMMA2, **sizes(64, 30, 41, 3, 3, 1, 8), "attn_logit_softcapping": None,
                   "query_pre_attn_scalar": 11, "sliding_window": 6},
        "dtype": BF16,
    },
    "gemma2-softcap": {
        "config": {**GEMMA2, **sizes(64, 26, 39, 3, 2, 2, 10), "attention_bias": True, "attn_logit_softcapping": 1.5,
                   "layer_types": [FULL, SLIDING, FULL], "query_pre_attn_scalar": 21, "sliding_window": 5},
        "dtype": BF16, "five": True,
    },
    "gemma3-linear": {
        "config": {**GEMMA3, **sizes(64, 28, 43, 3, 4, 2, 12), "query_pre_attn_scalar": 18,
                   "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 6,
                   "sliding_window_pattern": 3},
        "dtype": BF16,
    },
    "gemma3-layer-types": {
        "config": {**GEMMA3, **sizes(64, 26, 43, 3, 2, 1, 16), "layer_types": [FULL, SLIDING, FULL],
                   "query_pre_attn_scalar": 16, "rope_local_base_freq": 1000.0,
                   "rope_scaling": {"factor": 4.0, "rope_type": "linear"}, "sliding_window": 5},
        "dtype": F16, "five": True,
    },
    # With a vision tower, as published: most of the text model's sizes are the family's, and not in the file.
    "gemma3-multimodal": {
        "config": {**GEMMA3_MULTIMODAL, "text_config": {
            "head_dim": 6, "hidden_size": 24, "intermediate_size": 42, "model_type": "gemma3_text",
            "num_hidden_layers": 3, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 6,
            "sliding_window_pattern": 2, "vocab_size": 75}},
        "dtype": BF16, "names": "gemma3-published",
    },
    "gemma3-multimodal-new": {
        "config": {**GEMMA3_MULTIMODAL, "text_config": {
            **sizes(75, 40, 42, 2, 2, 1, 12), "model_type": "gemma3_text", "query_pre_attn_scalar": 30,
            "layer_types": [SLIDING, FULL], "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 6, "max_position_embeddings": 256}},
        "dtype": BF16, "five": True,
    },
    # Half of head_dim rotates. The longest sequence is as long as the short factors go.
    "phi3-longrope": {
        "config": {**PHI3, **sizes(64, 48, 45, 2, 3, 1), "max_position_embeddings": 160,
                   "original_max_position_embeddings": 40, "partial_rotary_factor": 0.5, "rope_scaling": {
                       "long_factor": [1.1, 2.5, 7.0, 13.5], "short_factor": [1.0, 1.05, 1.2, 1.9],
                       "type": "longrope"}, "sliding_window": 7},
        "dtype": BF16,
    },
    # Two of the sequences are longer than the short factors go: all their tokens turn by the long ones.
    "phi3-longrope-long": {
        "config": {**PHI3, **sizes(64, 24, 31, 2, 2, 1), "max_position_embeddings": 96,
                   "original_max_position_embeddings": 16, "rope_scaling": {
                       "long_factor": [1.3, 2.9, 5.5, 8.0, 11.0, 17.5], "short_factor": [1.0, 1.1, 1.15, 1.3, 1.6, 2.2],
                       "type": "longrope"}},
        "dtype": MIXED,
    },
    "phi3-partial": {
        "config": {**PHI3, **sizes(66, 32, 45, 2, 2, 2), "max_position_embeddings": 128,
                   "partial_rotary_factor": 0.75, "rope_theta": 3000.0, "tie_word_embeddings": True},
        "dtype": F16, "five": True,
    },
    # GPT-2 as published: no prefix, and the masks are stored.
    "gpt2-published": {
        "config": {**GPT2, **gpt2_sizes(64, 26, ABSENT, 2, 2, 44), "n_ctx": 44},
        "dtype": F32, "names": "gpt2-published",
    },
    # Heads of 11.
    "gpt2-scale": {
        "config": {**GPT2, **gpt2_sizes(64, 33, 51, 3, 3, 40), "activation_function": "gelu",
                   "scale_attn_by_inverse_layer_idx": True},
        "dtype": F16, "five": True,
    },
    # GPT-NeoX with the activation of GPT-NeoX 20B and the buffers that Pythia's files hold.
    "gpt-neox-serial": {
        "config": {**NEOX, **sizes(64, 36, 55, 2, 3), "hidden_act": "gelu_fast", "rotary_pct": 0.5,
                   "use_parallel_residual": False},
        "dtype": F16, "names": "pythia",
    },
    "gpt-neox-full": {
        "config": {**NEOX, **sizes(64, 28, 51, 2, 2), "attention_bias": False, "hidden_act": "gelu_new",
                   "rotary_emb_base": 5000, "rotary_pct": 1.0},
        "dtype": BF16, "five": True,
    },
    "olmo2-grouped": {
        "config": {**OLMO2, **sizes(64, 30, 45, 3, 3, 1)},
        "dtype": BF16,
    },
    "olmo2-bias": {
        "config": {**OLMO2, **sizes(64, 28, 45, 2, 2, 2), "attention_bias": True},
        "dtype": F16, "five": True,
    },
    # Only the full layers are scaled.
    "olmo3-yarn": {
        "config": {**OLMO3, **sizes(64, 28, 45, 4, 2, 1), "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
                   "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1,
                                    "factor": 8.0, "original_max_position_embeddings": 64, "rope_type": "yarn"}},
        "dtype": BF16,
    },
    "olmo3-layer-types": {
        "config": {**OLMO3, **sizes(64, 24, 45, 2, 2, 2), "layer_types": [FULL, SLIDING], "sliding_window": 3,
                   "rope_theta": 20000, "rope_scaling": {"factor": 2.0, "rope_type": "linear"}},
        "dtype": F16, "five": True,
    },
    # 1 is a layer with rotary positions.
    "smollm3": {
        "config": {**SMOLLM3, **sizes(64, 32, 45, 3, 2, 1), "layer_types": [FULL, FULL, FULL],
                   "no_rope_layers": [1, 0, 1], "tie_word_embeddings": True},
        "dtype": BF16,
    },
    "smollm3-window": {
        "config": {**SMOLLM3, **sizes(64, 30, 45, 3, 3, 1), "attention_bias": True, "mlp_bias": True,
                   "no_rope_layer_interval": 2, "sliding_window": 6, "use_sliding_window": True},
        "dtype": F16,
    },
}  # fmt: skip


# The checkpoints.

def present(value):
    if isinstance(value, dict):
        return {key: present(v) for key, v in value.items() if v is not ABSENT}
    return value


def auto(config):
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def text_model(model):
    """The module that embeds, runs the blocks and norms."""
    base = model.base_model
    return getattr(base, "language_model", base)


def random_tensors(model, generator):
    """By name and shape: no weight is such that leaving it out would change little."""
    tensors = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        module = model.get_submodule(name.rpartition(".")[0])
        kind = type(module).__name__
        if name.endswith("bias"):
            value = 0.3 * noise
        elif "Norm" in kind:
            value = 0.3 * noise + (0.0 if kind.startswith("Gemma") else 1.0)
        elif "Scaled" in kind:
            value = noise / parameter.shape[1] ** 0.5
        elif "Embedding" in kind:
            value = noise
        else:
            inputs = parameter.shape[0] if kind == "Conv1D" else parameter[0].numel()
            value = 1.3 * noise / inputs**0.5
        tensors[name] = value
    return tensors


def published(names, tensors, config):
    """The names of published files, and the buffers they hold besides the weights."""
    stored = {}
    for name, value in tensors.items():
        if names == "gpt2-published":
            name = name.removeprefix("transformer.")
        elif names == "gemma3-published":
            name = name.replace("model.language_model.", "language_model.model.")
            name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
            name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
        elif config.model_type == "gpt_neox":
            name = name.replace("lm_head.", "embed_out.")
        stored[name] = value
    for layer in range(config.get_text_config().num_hidden_layers):
        if names == "gpt2-published":
            stored[f"h.{layer}.attn.bias"] = torch.ones(44, 44).tril()[None, None]
        elif names == "pythia":
            prefix = f"gpt_neox.layers.{layer}.attention."
            kind = [torch.uint8, torch.bool][layer % 2]
            stored[prefix + "bias"] = torch.ones(48, 48, dtype=kind).tril()[None, None]
            stored[prefix + "masked_bias"] = torch.tensor(-1e9)
            stored[prefix + "rotary_emb.inv_freq"] = 10000.0 ** -(torch.arange(0, 6, 2) / 6)
    return stored


def save_checkpoint(folder, tensors, shards):
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_checkpoint(folder, spec, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    types = spec["dtype"] if isinstance(spec["dtype"], list) else [spec["dtype"]]
    dtype = str(types[0]).removeprefix("torch.")
    config = present({**spec["config"], "torch_dtype": dtype})
    (folder / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")
    config = AutoConfig.from_pretrained(folder)
    if spec.get("five"):
        config.save_pretrained(folder)
    model = auto(config).from_config(config)
    tensors = random_tensors(model, torch.Generator().manual_seed(seed))
    tensors = {name: value.to(types[i % len(types)]) for i, (name, value) in enumerate(tensors.items())}
    save_checkpoint(folder, published(spec.get("names"), tensors, config), spec.get("shards", 1))


# The states.

class Float64Only(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                assert leaf.dtype == torch.float64, f"{function} gives {leaf.dtype}"
        return out


@contextlib.contextmanager
def float64_only():
    """float32 reads as float64 in the modules' code, and nothing but float64 may come of any operation."""
    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        with Float64Only():
            yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept


def load(folder):
    config = AutoConfig.from_pretrained(folder)
    model, report = auto(config).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    missing = set(report["missing_keys"]) - {"lm_head.weight"}
    unexpected = {name for name in report["unexpected_keys"] if not name.endswith((".bias", "masked_bias", "inv_freq"))}
    assert not missing and not unexpected and not report["mismatched_keys"], (folder, report)
    return text_model(model).eval()


def states(model, sequences, exact=True):
    """-> a (L+1, T, D) each."""
    blocks = model.h if hasattr(model, "h") else model.layers
    seen = []
    hooks = [blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    hooks += [b.register_forward_hook(lambda _, args, out: seen.append(out)) for b in blocks]
    results = []
    with torch.no_grad(), float64_only() if exact else contextlib.nullcontext():
        if exact and hasattr(model, "rotary_emb"):
            model.rotary_emb = type(model.rotary_emb)(config=model.rotary_emb.config)
        for ids in sequences:
            seen.clear()
            model(input_ids=ids[None].long(), use_cache=False)
            results.append(torch.stack([x[0] for x in seen]))
    for hook in hooks:
        hook.remove()
    return results


def make_golden(folder, spec, seed, lengths=LENGTHS):
    model = load(folder)
    generator = torch.Generator().manual_seed(seed + 1)
    vocab = min(64, model.config.vocab_size)
    sequences = [torch.randint(vocab, (length,), generator=generator, dtype=torch.int32) for length in lengths]
    golden = {}
    for i, (ids, hidden) in enumerate(zip(sequences, states(model, sequences))):
        assert hidden.isfinite().all()
        golden[f"ids_{i}"] = ids
        golden[f"hidden_{i}"] = hidden.to(F32)
    save_file(golden, folder / "golden.safetensors")
    types = spec["dtype"] if isinstance(spec["dtype"], list) else [spec["dtype"]]
    about = {
        "family": model.config.model_type,
        "sequences": len(lengths),
        "lengths": lengths,
        "stored_dtype": ", ".join(str(t).removeprefix("torch.") for t in types),
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__}, float64, eager",
        "seed": seed,
    }
    (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")


def distance(a, b):
    """The worst difference, relative to the largest value of the same row."""
    return ((a.double() - b.double()).abs().amax(-1) / b.double().abs().amax(-1)).max().item()


def check(folder):
    golden = load_file(folder / "golden.safetensors")
    count = len(golden) // 2
    sequences = [golden[f"ids_{i}"] for i in range(count)]
    unaided = states(load(folder), sequences, exact=False)
    exact = states(load(folder), sequences)
    stored = max(distance(golden[f"hidden_{i}"], exact[i]) for i in range(count))
    print(f"{folder.name:24} stored {stored:.1e}  unaided {max(map(distance, unaided, exact)):.1e}")
    return stored


def main():
    check_only = sys.argv[1] == "--check"
    folder, *names = sys.argv[2 if check_only else 1 :]
    folder = Path(folder)
    if check_only:
        worst = max(check(folder / name) for name in names or sorted(f.name for f in folder.iterdir() if f.is_dir()))
        print(f"worst {worst:.1e}")
        return
    for name in names or FAMILIES:
        seed = zlib.crc32(name.encode())
        make_checkpoint(folder / name, FAMILIES[name], seed)
        make_golden(folder / name, FAMILIES[name], seed)
        print(name, sum(file.stat().st_size for file in (folder / name).iterdir()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    main()
