"""Does the block that the gradient puts first adapt best? Three constructed shifts, against brute force.

Run (about a minute):  OMP_NUM_THREADS=1 python tests/benchmarks/suggested_blocks.py
Options: --seeds 5 --rows 128

A small residual model learns to tell texts by the sum of its letters' values. Then the letters are swapped, the labels
flipped, or an offset is added to the features behind layers[1]. Each block alone is trained on a few shifted rows, at
the better of two rates, and judged on others; its place among the blocks is that of its accuracy.

Goal: for each shift, in at least 4 of 5 seeds, the block that `suggest_layers(method="gradient")` puts first is among
the best two. It is missed: that is the head each time, which is among them in 5 of 5 seeds for the labels, and in 0 of 5
for the other two shifts.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time

import torch
from torch import nn

from hf_freeze import freeze, suggest_layers, unfreeze

LETTERS, LENGTH, WIDTH, LAYERS = 20, 8, 24, 4
SHIFTS = ("input", "middle", "output")
STEPS, RATES = 80, (3e-3, 3e-2)


class Layer(nn.Module):
    """A residual layer of two."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        return hidden + self.outer(torch.relu(self.inner(self.norm(hidden))))


class Reader(nn.Module):
    """Letters, layers, their mean, a head. `offset` is added behind layers[1]."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(LETTERS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.classifier = nn.Linear(WIDTH, 2)
        self.register_buffer("offset", torch.zeros(WIDTH))

    def forward(self, input_ids, labels=None):
        hidden = self.embeddings(input_ids)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden) + (self.offset if index == 1 else 0)
        logits = self.classifier(hidden.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(
    model: Reader, texts: torch.Tensor, labels: torch.Tensor, *, steps: int, rate: float, batch: int = 32
) -> None:
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        rows = torch.randint(len(texts), (batch,), generator=draw)
        optimizer.zero_grad()
        model(texts[rows], labels[rows])["loss"].backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: Reader, texts: torch.Tensor, labels: torch.Tensor) -> float:
    return (model(texts, labels)["logits"].argmax(1) == labels).float().mean().item()


def shifted(model: Reader, shift: str, texts: torch.Tensor, labels: torch.Tensor, draw: torch.Generator):
    """Return the model, texts and labels after the shift."""
    model = copy.deepcopy(model)
    if shift == "input":
        texts = torch.randperm(LETTERS, generator=draw)[texts]
    elif shift == "output":
        labels = 1 - labels
    else:
        model.offset = 6 * torch.randn(WIDTH, generator=draw)
    return model, texts, labels


def alone(model: Reader, block: str, few: tuple, held_out: tuple) -> float:
    """Return the accuracy after training this block alone, at the better rate."""
    found = []
    for rate in RATES:
        one = copy.deepcopy(model)
        freeze(one, "all")
        unfreeze(one, block)
        train(one, *few, steps=STEPS, rate=rate)
        found.append(accuracy(one, *held_out))
    return max(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=128)
    options = parser.parse_args()
    began = time.perf_counter()
    print(f"command: {' '.join(['python', *sys.argv])}")
    print("shift   seed  before  first by gradient  its place by brute force; accuracy of each block alone")
    hits = dict.fromkeys(SHIFTS, 0)
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        draw = torch.Generator().manual_seed(seed)
        texts = torch.randint(LETTERS, (4000, LENGTH), generator=draw)
        labels = (torch.randn(LETTERS, generator=draw)[texts].sum(1) > 0).long()
        clean = Reader()
        train(clean, texts[:2000], labels[:2000], steps=800, rate=3e-3, batch=64)
        for shift in SHIFTS:
            model, *data = shifted(clean, shift, texts, labels, draw)
            few, held_out = (
                [part[place] for part in data] for place in (slice(2000, 2000 + options.rows), slice(3000, None))
            )
            rows = [{"input_ids": text, "labels": label} for text, label in zip(few[0], few[1].tolist(), strict=True)]
            found = suggest_layers(model, rows, method="gradient", show_progress=False)
            places = {block: alone(model, block, few, held_out) for block in found.scores}
            first = max(found.scores, key=found.scores.get)
            place = 1 + sum(other > places[first] for other in places.values())
            hits[shift] += place <= 2
            each = ", ".join(f"{block} {value:.3f}" for block, value in places.items())
            print(f"{shift:<7} {seed:>4}  {accuracy(model, *held_out):.3f}   {first:<17}  {place}; {each}", flush=True)
    print(f"among the best two: {', '.join(f'{shift} {count} of {options.seeds}' for shift, count in hits.items())}")
    print(f"{time.perf_counter() - began:.0f} s")
    reached = all(count >= 0.8 * options.seeds for count in hits.values())
    print("goal reached" if reached else "GOAL MISSED")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
