"""Scores of scorers in PyTorch, in float64 from the stored F32 weights: what pytorch-scorer/ holds.

    python make-pytorch-scorer.py --make pytorch-scorer
    python make-pytorch-scorer.py pytorch-scorer/stratum-listwise pytorch-scorer/features.safetensors

The first makes the features, and for each head a scorer that PyTorch initialises and trains for a few steps, saved as
its state dict. The second takes a folder that Stratum's saveScorer wrote and loads it by name. Both write
`<scorer>.scores.json`: `scores`, a list each, and `long`, the scores of LONG candidates. Needs torch and safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, gelu, kl_div, log_softmax

DIM, WIDTH, HEADS, FFN, TAU = 24, 16, 4, 32, 0.2
SIZES = [1, 2, 7, 100, 3, 5, 2, 12, 1, 8]
# The first list's instruction with every candidate of the features, repeated in turn up to this many.
LONG = 1500


class SrrScorer(torch.nn.Module):
    """The listwise scorer. Instructions (B, D), candidates (B, M, D), mask (B, M), True = a candidate -> scores (B, M)."""

    def __init__(self, dim, width, heads, ffn):
        super().__init__()
        self.proj = torch.nn.Linear(dim, width)
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, ffn, dropout=0, activation="gelu", batch_first=True, norm_first=False
        )
        self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, inst, resp, mask):
        sequence = self.proj(torch.cat([inst[:, None], resp], 1))
        padding = torch.cat([torch.zeros_like(mask[:, :1]), ~mask], 1)
        out = self.encoder(sequence, src_key_padding_mask=padding)
        return cosine_similarity(out[:, :1], out[:, 1:], dim=-1)


class PointwiseScorer(torch.nn.Module):
    """The pointwise head: no candidate sees another one."""

    def __init__(self, dim, width, heads, ffn):
        super().__init__()
        self.proj = torch.nn.Linear(dim, width)
        self.linear1 = torch.nn.Linear(width, ffn)
        self.linear2 = torch.nn.Linear(ffn, width)
        self.norm = torch.nn.LayerNorm(width)

    def forward(self, inst, resp, mask):
        h = self.proj(torch.cat([inst[:, None], resp], 1))
        out = self.norm(h + self.linear2(gelu(self.linear1(h))))
        return cosine_similarity(out[:, :1], out[:, 1:], dim=-1)


MODULES = {"listwise": SrrScorer, "pointwise": PointwiseScorer}


def read_features(path):
    """-> inst (B, D), lists of candidates (m, D), lists of labels (m), in float64."""
    tensors = load_file(path)
    sizes = tensors["offsets"].diff().tolist()
    return tensors["inst"].double(), tensors["resp"].double().split(sizes), tensors["labels"].double().split(sizes)


def pad(parts, fill):
    longest = max(map(len, parts))
    return torch.stack([torch.cat([p, p.new_full((longest - len(p), *p.shape[1:]), fill)]) for p in parts])


def record(module, features, path, standardise=lambda inst, resp: (inst, resp)):
    """Writes the scores of every list. The padding is poisoned: the lists scored alone must agree."""
    inst, lists, _ = features
    every = torch.cat(lists)
    tiled = every[torch.arange(LONG) % len(every)]
    module.double().eval()
    with torch.no_grad():
        of = lambda inst, resp, mask: module(*standardise(inst, resp), mask)
        mask = pad([torch.ones(len(l), dtype=torch.bool) for l in lists], False)
        padded = of(inst, pad(lists, 7.0), mask)
        alone = [of(i[None], l[None], torch.ones(1, len(l), dtype=torch.bool))[0] for i, l in zip(inst, lists)]
        for row, scores in zip(padded, alone):
            assert (row[: len(scores)] - scores).abs().max() < 1e-12
        long = of(inst[:1], tiled[None], torch.ones(1, LONG, dtype=torch.bool))[0]
    # Equal candidates score alike: the first round says all.
    assert (long - long[torch.arange(LONG) % len(every)]).abs().max() < 1e-12
    scores = {"scores": [a.tolist() for a in alone], "long": long[: len(every)].tolist()}
    path.write_text(json.dumps(scores) + "\n")


def make_features(path):
    """States with a mean and a deviation of their own in every dimension, and a direction that tells the labels."""
    shift, spread = torch.randn(2, DIM), torch.rand(2, DIM) + 0.5
    direction = torch.randn(DIM)
    labels = torch.cat([(torch.arange(m) % 3 == 0).float()[torch.randperm(m)] for m in SIZES])
    inst = shift[0] + spread[0] * torch.randn(len(SIZES), DIM)
    resp = shift[1] + spread[1] * (torch.randn(len(labels), DIM) + labels[:, None] * direction)
    offsets = torch.tensor([0, *SIZES]).cumsum(0).int()
    save_file({"inst": inst, "resp": resp, "labels": labels, "offsets": offsets}, path)


def train(module, features):
    """Ten steps of AdamW on the KL loss: no parameter keeps the value that would hide it, such as a bias of 0."""
    inst, lists, labels = features
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(10):
        loss = 0
        for i, l, y in zip(inst.float(), lists, labels):
            scores = module(i[None], l[None].float(), torch.ones(1, len(l), dtype=torch.bool))[0]
            loss = loss + kl_div(log_softmax(scores / TAU, 0), (y / y.sum()).float(), reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{type(module).__name__}: loss {loss.item() / len(lists):.3f}")


def make(folder):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    make_features(folder / "features.safetensors")
    features = read_features(folder / "features.safetensors")
    for head, kind in MODULES.items():
        module = kind(DIM, WIDTH, HEADS, FFN)
        train(module, features)
        save_file(module.state_dict(), folder / f"pytorch-{head}.safetensors")
        record(module, features, folder / f"pytorch-{head}.scores.json")


def score(folder, features):
    config = json.loads((folder / "scorer.json").read_text())
    sizes = config["sizes"]
    module = MODULES[config["head"]](sizes["dim"], sizes["width"], sizes["heads"], sizes["ffn"])
    tensors = load_file(folder / "scorer.safetensors")
    missing, others = module.load_state_dict(tensors, strict=False)
    statistics = [f"standardise.{role}.{what}" for role in ("inst", "resp") for what in ("mean", "scale")]
    assert missing == [] and sorted(others) == (statistics if config["standardise"] else []), (missing, others)

    def standardise(inst, resp):
        if not config["standardise"]:
            return inst, resp
        inst_mean, inst_scale, resp_mean, resp_scale = (tensors[name].double() for name in statistics)
        return (inst - inst_mean) * inst_scale, (resp - resp_mean) * resp_scale

    record(module, read_features(features), folder.with_name(f"{folder.name}.scores.json"), standardise)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--make":
        make(Path(sys.argv[2]))
    else:
        score(Path(sys.argv[1]), sys.argv[2])
