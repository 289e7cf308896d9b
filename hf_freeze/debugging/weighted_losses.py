"""Is the loss weighted as the Trainer's arguments say? A Trainer that weights it answers `weighted_loss`."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_freeze.debugging.passes import Runner
from hf_freeze.debugging.sample_check import Check, failed

_DECLARED = ("class_weights", "pos_weight", "focal_gamma")


def check_weights(runner: Runner, batch: Mapping[str, Any], label: torch.Tensor) -> Check | None:
    """Compute the weighted loss of the row again; None where it is right, or no weights are declared.

    It is asked for with a count of 1: divided by the weights of its own labels, one row's loss is that without weights.
    """
    trainer = runner.inspected.trainer
    args = getattr(trainer, "args", None)
    declared = [f"{name}={given!r}" for name in _DECLARED if (given := getattr(args, name, None)) is not None]
    weighted = getattr(trainer, "weighted_loss", None)
    if declared and weighted is None:
        return failed(
            "loss",
            f"{declared[0]} is among the arguments, and {type(trainer).__name__} does not apply it: the loss is not "
            "weighted. Use FreezeTrainer, or freezing(...) of your Trainer class.",
        )
    if weighted is None:
        return None
    made = runner.run(batch, count=torch.ones((), device=runner.inspected.device))
    if made.error is not None or made.logits is None or not isinstance(made.loss, torch.Tensor):
        return None
    rows = weighted.of(made.logits, label)
    replicas = trainer.args.world_size if trainer.args.average_tokens_across_devices else 1
    expected, found = float(rows.weighted.sum().detach()) * replicas, float(made.loss.detach())
    if abs(found - expected) <= 1e-3 * abs(expected) + 1e-5:
        return None
    plain = float(rows.plain.sum().detach()) * replicas
    cause = " It is the loss without weights." if abs(found - plain) <= 1e-3 * abs(plain) + 1e-5 else ""
    return failed(
        "loss",
        f"The {weighted} of the logits is {expected:.4g}, and the Trainer trains by {found:.4g}.{cause} Look at "
        "compute_loss: it must return what Trainer.compute_loss does.",
    )
