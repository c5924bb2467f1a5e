"""Makes list-loss.json: the listwise losses and their derivatives by the scores, from PyTorch in float64.

    python make-list-loss.py path/to/scorer.safetensors

The argument is a file of a scorer trained in PyTorch, with `scores`, `labels`, `mask` (B, M) and `loss.<name>`, the means
over the lists: the formulas below must reproduce them. Its lists go into the JSON too. Needs torch and safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax, softplus


def kl(z, y):
    return kl_div(log_softmax(z, 0), y / y.sum(), reduction="sum")


def listnet(z, y):
    return cross_entropy(z, torch.softmax(y, 0))


def listmle(z, y):
    z = z[torch.argsort(y, descending=True, stable=True)]
    return sum(torch.logsumexp(z[k:], 0) - z[k] for k in range(len(z)))


def pair_losses(z, y):
    """softplus(-(z_i - z_j)) and whether y_i > y_j."""
    return softplus(-(z[:, None] - z[None])), y[:, None] > y[None]


def ranknet(z, y):
    losses, pairs = pair_losses(z, y)
    return losses[pairs].mean() if pairs.any() else 0 * z.sum()


def ideal_dcg(gain):
    return (gain.sort(descending=True).values / torch.log2(torch.arange(len(gain)) + 2.0)).sum()


def lambdaloss(z, y):
    rank = torch.empty_like(z)
    rank[torch.argsort(z.detach(), descending=True, stable=True)] = torch.arange(len(z)) + 1.0
    gain, discount = 2**y - 1, 1 / torch.log2(1 + rank)
    weights = (gain[:, None] - gain[None]).abs() * (discount[:, None] - discount[None]).abs() / ideal_dcg(gain)
    losses, pairs = pair_losses(z, y)
    return (weights * losses)[pairs].sum()


def approxndcg(z, y):
    others = torch.sigmoid(z[None] - z[:, None]) * (1 - torch.eye(len(z)))
    gain = 2**y - 1
    return 1 - (gain / torch.log2(2 + others.sum(1))).sum() / ideal_dcg(gain)


def any_positive(z, y):
    return torch.logsumexp(z, 0) - torch.logsumexp(z[y > 0], 0)


def bce(z, y):
    return binary_cross_entropy_with_logits(z, y)


LOSSES = [kl, listnet, listmle, ranknet, lambdaloss, approxndcg, any_positive, bce]


def record(title, tau, lists, losses):
    """lists: (scores, labels) each, floats that float32 holds."""
    results = {}
    for loss in losses:
        values, slopes = [], []
        for scores, labels in lists:
            s = torch.tensor(scores, requires_grad=True)
            value = loss(s / tau, torch.tensor(labels))
            value.backward()
            values.append(value.item())
            slopes.append(s.grad.tolist())
        results[loss.__name__] = {"losses": values, "grads": slopes}
    return {"title": title, "tau": tau, "lists": [{"scores": s, "labels": y} for s, y in lists], "results": results}


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def main():
    torch.set_default_dtype(torch.float64)
    scorer = load_file(sys.argv[1])
    trained = []
    for scores, labels, mask in zip(scorer["scores"], scorer["labels"], scorer["mask"]):
        trained.append((scores[mask > 0].tolist(), labels[mask > 0].tolist()))
    records = [record("scorer in PyTorch, binary labels", 0.2, trained, LOSSES)]
    records[0]["means"] = {loss.__name__: scorer[f"loss.{loss.__name__}"].item() for loss in LOSSES}
    for name, mean in records[0]["means"].items():
        ours = sum(records[0]["results"][name]["losses"]) / len(trained)
        assert abs(ours - mean) < 1e-6 * mean, (name, ours, mean)

    random = torch.Generator().manual_seed(11)

    def draw(m, label):
        scores = torch.rand(m, generator=random) * 2 - 1
        labels = label(torch.randint(0, 5, (m,), generator=random).double())
        labels[0] = labels.max().clamp(min=label(torch.tensor(1.0)))
        return scores.float().tolist(), labels.tolist()

    graded = [draw(m, lambda y: y) for m in (1, 2, 3, 9, 20)]
    records.append(record("graded labels", 0.0625, graded, [kl, listnet, listmle, ranknet, lambdaloss, approxndcg]))
    fractions = [draw(m, lambda y: y / 4) for m in (1, 2, 3, 9, 20)]
    records.append(record("labels between 0 and 1", 0.125, fractions, [l for l in LOSSES if l is not any_positive]))
    tied = ([0.5, 0.25, 0.5, 0.25, -0.5, 0.5], [0.0, 2.0, 1.0, 0.0, 1.0, 3.0])
    records.append(record("tied scores and labels", 0.5, [tied], [kl, listnet, listmle, ranknet, lambdaloss, approxndcg]))
    Path(__file__).with_name("list-loss.json").write_text(
        "[\n" + ",\n".join(json.dumps(rounded(entry)) for entry in records) + "\n]\n"
    )


if __name__ == "__main__":
    main()
