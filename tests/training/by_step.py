"""Weights of every step, as the DeepSpeed scripts save them."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.nearness import assert_near
from tests.training.scripts.deepspeed_run import STEPS


def by_step(path: Path) -> list[dict[str, torch.Tensor]]:
    """Read a list over steps; 0 is before the first."""
    steps: list[dict[str, torch.Tensor]] = [{} for _ in range(STEPS + 1)]
    for key, tensor in load_file(path).items():
        step, _, name = key.partition("/")
        steps[int(step)][name] = tensor
    return steps


def assert_close(found: list[dict], expected: list[dict]) -> None:
    """The weights of every step are near each other."""
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert_near(ours, theirs, floor=0.1, where=f"step {step}, ")
