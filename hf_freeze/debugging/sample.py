"""`debug_sample`: one sample through the model, and everything that could be wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import torch

from hf_freeze.debugging.facts import facts_of
from hf_freeze.debugging.look import Look
from hf_freeze.debugging.optimizer_checks import stale_gradients
from hf_freeze.debugging.report import SampleReport
from hf_freeze.debugging.table import run
from hf_freeze.debugging.untouched import untouched
from hf_freeze.errors import FreezeError, SampleCheckError
from hf_freeze.model_inputs.inspected_model import InspectedModel, inspect_model
from hf_freeze.model_inputs.rows import pick_row


def debug_sample(
    trainer_or_model: Any,
    sample: Any = None,
    *,
    dataset: Any = "eval",
    index: int | None = None,
    tokenizer: Any = None,
    collator: Callable[[list[Any]], Any] | None = None,
    threshold: Any = "auto",
    backward: bool = False,
    checks: Literal["fast", "full"] = "fast",
    seed: int | None = None,
    raise_on_failure: bool = False,
    quiet: bool = True,
) -> SampleReport:
    """Run one sample through the model as training will, say what was seen and what is wrong, and leave no trace.

    `trainer_or_model`: a Trainer (its data, collator, tokenizer, device, precision, loss and tuned threshold are used),
    or a model: transformers, PEFT, or any `nn.Module` that returns a ModelOutput, dict, tuple or tensor.
    `sample`: a row as a dict, a text or a pair of texts, {"text": ..., "label": ...}, or an index. By default row
    `index` of `dataset`, or one drawn at random; `seed` repeats a draw (by default it differs from call to call, except
    on several processes, which must draw the same row).
    `dataset`: "eval", "train", a key of the Trainer's eval sets, or the data itself; of an iterable one, the first row.
    `threshold`: "auto" takes the metrics' or the one in the model's config; or a margin, a `ThresholdResult`, None.
    `backward=True` adds a backward pass, and what became of every parameter's gradient.
    `checks="full"` adds passes in train mode and beside another row; all in all at most the cost of 12 forward passes.

    `print(debug_sample(...))` shows the report; `quiet=False` lets the main process alone print it, where several run.
    Every process returns it. All processes may call it, and must where the model is sharded. A failed check raises
    `SampleCheckError` only with `raise_on_failure=True`. What cannot be run at all, such as an empty data set or a text
    without a tokenizer, raises `FreezeError`.
    """
    if checks not in ("fast", "full"):
        raise FreezeError(f'checks={checks!r} is not known. Give "fast" or "full".')
    inspected = inspect_model(trainer_or_model, tokenizer=tokenizer, collator=collator, threshold=threshold)
    stale = stale_gradients(inspected.model)
    seed = _seed(inspected) if seed is None else seed
    with untouched(inspected.model, inspected.trainer, tokenizer=inspected.tokenizer):
        _seed_torch(seed)
        row = pick_row(inspected, sample, dataset=dataset, index=index, seed=seed)
        look = Look(inspected, row, dataset=dataset, full=checks == "full", backward=backward, stale=stale)
        report = _report_on(look)
    if inspected.is_main_process() and not quiet:
        print(report)
    if raise_on_failure and not report.ok:
        said = "\n".join(f"{check.name}: {check.message}" for check in report.failed)
        raise SampleCheckError(
            f"debug_sample: {len(report.failed)} of {len(report.checks)} checks failed.\n{said}", report
        )
    return report


def _report_on(look: Look) -> SampleReport:
    """Ask every check, and gather what was seen on the way."""
    checks = run(look)
    logits = None if not look.batch or look.logits is None else look.logits.detach().cpu()
    return SampleReport(checks, logits, look.statuses if look.batch else {}, facts_of(look))


def _seed(inspected: InspectedModel) -> int:
    """A new seed for each call, but the same on all processes, which are not asked: not all of them may be here."""
    if inspected.processes > 1:
        return int(inspected.trainer.args.seed)
    return random.SystemRandom().randrange(2**31)


def _seed_torch(seed: int) -> None:
    """Seed the generators that are put back afterwards; torch.manual_seed would also seed a GPU not yet in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
