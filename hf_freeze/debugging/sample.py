"""`debug_sample`: one sample through the model, and everything that could be wrong."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

from hf_freeze.debugging.facts import facts_of
from hf_freeze.debugging.look import Look
from hf_freeze.debugging.optimizer_checks import stale_gradients
from hf_freeze.debugging.report import SampleReport
from hf_freeze.debugging.table import run
from hf_freeze.errors import FreezeError, SampleCheckError
from hf_freeze.model_inputs.input_rows import pick_row
from hf_freeze.model_inputs.inspected_model import InspectedModel, inspect_model
from hf_freeze.no_trace import attributes_kept, gradients_kept, modules_kept, tokenizer_kept, untouched


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

    Args:
        trainer_or_model: A Trainer (its data, collator, tokenizer, device, precision, loss and tuned threshold are
            used), or a model: transformers, PEFT, or any `nn.Module` that returns a ModelOutput, dict, tuple or tensor.
        sample: A row as a dict, a text or a pair of texts, {"text": ..., "label": ...}, or an index. By default row
            `index` of `dataset`, or one drawn at random.
        dataset: "eval", "train", a key of the Trainer's eval sets, or the data itself; of an iterable one, the first
            row is taken.
        index: The row of `dataset` to take.
        tokenizer: Reads a text where there is no Trainer, or another than its own.
        collator: Makes a batch of the row; by default the Trainer's, else the row is padded by the tokenizer.
        threshold: "auto" takes that of the metrics or of the model's config; or a margin, a `ThresholdResult`, None.
        backward: Add a backward pass, and what became of every parameter's gradient.
        checks: "full" adds passes in train mode and beside another row; all in all at most the cost of 12 forward
            passes.
        seed: Repeats a draw. By default it differs from call to call, except on several processes, which must draw the
            same row.
        raise_on_failure: Raise `SampleCheckError` where a check failed.
        quiet: False lets the main process print the report.

    Returns:
        The report, on every process. All processes may call this, and must where the model is sharded.

    Raises:
        SampleCheckError: With `raise_on_failure`, where a check failed; it holds the report.
        FreezeError: For what cannot be run at all, such as an empty data set or a text without a tokenizer.
    """
    if checks not in ("fast", "full"):
        raise FreezeError(f'checks={checks!r} is not known. Give "fast" or "full".')
    inspected = inspect_model(trainer_or_model, tokenizer=tokenizer, collator=collator, threshold=threshold)
    stale = stale_gradients(inspected.model)
    seed = _seed(inspected) if seed is None else seed
    with _untouched(inspected):
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


@contextmanager
def _untouched(inspected: InspectedModel) -> Iterator[None]:
    """Put back, at the end and when something is raised, whatever the passes below leave anywhere."""
    with ExitStack() as stack:
        for kept in (untouched, gradients_kept, modules_kept):
            stack.enter_context(kept(inspected.model))
        stack.enter_context(attributes_kept(*(owner for owner in (inspected.trainer,) if owner is not None)))
        stack.enter_context(tokenizer_kept(inspected.tokenizer))
        yield


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
