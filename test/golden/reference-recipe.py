"""The plain PyTorch recipe that Stratum's training is measured against, in float32, and PyTorch's own time for it.

    python reference-recipe.py features.safetensors splits.json [--threads 1] [--epochs 40]
    python reference-recipe.py --time [--threads 1]

Features are ragged: inst (B, D), resp (N, D), labels (N), offsets (B + 1). Splits: [{"seed", "train", "test"}], indices of
lists. Prints for each seed the test's top-1 (ties split) and the seconds of an epoch, as JSON. Width 64, 4 heads, FFN 128,
dropout 0.1, tau 0.1, KL, AdamW 1e-3 / 1e-4 at a constant rate, batches of 32 lists, no clipping, no early stopping;
instructions and responses are standardised separately on the training lists. Needs torch and safetensors.
"""

import argparse
import json
import time

import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

WIDTH, HEADS, FFN, DROPOUT, TAU, LR, DECAY, BATCH = 64, 4, 128, 0.1, 0.1, 1e-3, 1e-4, 32


class SrrScorer(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = torch.nn.Linear(dim, WIDTH)
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, FFN, dropout=DROPOUT, activation="gelu", batch_first=True, norm_first=False
        )
        self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, states, mask):
        """states (B, 1 + M, D), the instruction's first; mask (B, M), True = a candidate -> scores (B, M)."""
        padding = torch.cat([torch.zeros_like(mask[:, :1]), ~mask], 1)
        out = self.encoder(self.proj(states), src_key_padding_mask=padding)
        return cosine_similarity(out[:, :1], out[:, 1:], dim=-1)


def optimizer_of(module):
    return torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=DECAY)


def step(module, optimizer, states, labels, mask):
    """One step on padded lists. The entropy of the target, a constant, is left out of the KL."""
    logits = (module(states, mask) / TAU).masked_fill(~mask, -torch.inf)
    logs = torch.log_softmax(logits, 1).masked_fill(~mask, 0)
    loss = -(labels / labels.sum(1, keepdim=True) * logs).sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def standardised(rows, train):
    mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
    return ((rows.double() - mean) / torch.where(deviation > 0, deviation, 1)).float()


def padded(inst, resp, labels, offsets):
    """-> states (B, 1 + M, D), labels (B, M), mask (B, M); padding is 0."""
    sizes = offsets.diff()
    mask = torch.arange(int(sizes.max()))[None] < sizes[:, None]
    states = torch.zeros(len(inst), 1 + mask.shape[1], inst.shape[1])
    states[:, 0] = inst
    states[:, 1:][mask] = resp
    grades = torch.zeros(mask.shape)
    grades[mask] = labels
    return states, grades, mask


def top1(scores, labels, mask):
    """The share of lists whose best candidate is safe, of those with safe and unsafe ones; equal scores split it."""
    contrast = (labels.sum(1) > 0) & (labels.sum(1) < mask.sum(1))
    scores, labels, mask = scores[contrast], labels[contrast], mask[contrast]
    scores = scores.masked_fill(~mask, -torch.inf)
    best = scores == scores.max(1, keepdim=True).values
    return ((best * labels).sum(1) / best.sum(1)).mean().item()


def train(features, split, epochs):
    torch.manual_seed(split["seed"])
    offsets = features["offsets"].long()
    chosen, test = (torch.tensor(split[part]) for part in ("train", "test"))
    owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    inst = standardised(features["inst"], features["inst"][chosen])
    resp = standardised(features["resp"], features["resp"][torch.isin(owner, chosen)])
    states, labels, mask = padded(inst, resp, features["labels"].float(), offsets)
    assert ((labels == 0) | (labels == 1)).all(), "labels are 1 for safe, 0 for unsafe"
    assert (labels[chosen].sum(1) > 0).all(), "a training list without a safe candidate has no target"

    module = SrrScorer(states.shape[2])
    optimizer = optimizer_of(module)
    begin = time.perf_counter()
    for _ in range(epochs):
        module.train()
        for batch in chosen[torch.randperm(len(chosen))].split(BATCH):
            step(module, optimizer, states[batch], labels[batch], mask[batch])
    seconds = (time.perf_counter() - begin) / epochs
    module.eval()
    with torch.no_grad():
        train_top1, test_top1 = (top1(module(states[of], mask[of]), labels[of], mask[of]) for of in (chosen, test))
    return {"seed": split["seed"], "top1": test_top1, "train_top1": train_top1, "epoch_seconds": seconds}


def measure_time(dim=4096, lists=10_000, size=10, pool=640, warm_up=5, steps=40):
    """Seconds of an epoch, from some of its steps: each gathers its lists from states that lie in memory."""
    torch.manual_seed(0)
    states, mask = torch.randn(pool, 1 + size, dim), torch.ones(BATCH, size, dtype=torch.bool)
    labels = (torch.arange(size) < 3).float().expand(BATCH, size)
    module = SrrScorer(dim)
    optimizer = optimizer_of(module)
    times = []
    for _ in range(warm_up + steps):
        begin = time.perf_counter()
        step(module, optimizer, states[torch.randint(pool, (BATCH,))], labels, mask)
        times.append(time.perf_counter() - begin)
    times = sorted(times[warm_up:])
    epoch_steps = -(-lists // BATCH)
    return {
        **{"threads": torch.get_num_threads(), "dim": dim, "lists": lists, "steps": epoch_steps},
        **{"step_ms_median": 1e3 * times[steps // 2], "step_ms_min": 1e3 * times[0]},
        "epoch_seconds": epoch_steps * sum(times) / steps,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("features", nargs="?")
    parser.add_argument("splits", nargs="?")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.time:
        print(json.dumps(measure_time()))
        return
    if options.splits is None:
        parser.error("give the features and the splits, or --time")
    features = load_file(options.features)
    with open(options.splits) as file:
        splits = json.load(file)
    seeds = [train(features, split, options.epochs) for split in splits]
    values = torch.tensor([seed["top1"] for seed in seeds])
    deviation = values.std().item() if len(seeds) > 1 else None
    print(json.dumps({"top1": values.mean().item(), "sd": deviation, "seeds": seeds}, indent=1))


if __name__ == "__main__":
    main()
