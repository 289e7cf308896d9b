"""The order in which a sample is looked at: each step goes on from what the one before has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_freeze.debugging import facts, gradients, inputs, labels, losses, outputs, training
from hf_freeze.debugging.batch import make_batch
from hf_freeze.debugging.check import Check, failed, names_in, without_consequences
from hf_freeze.debugging.padding import PaddingRoom, check_padding
from hf_freeze.debugging.passes import (
    OutOfRange,
    Pass,
    Runner,
    distance,
    is_sharded,
    noise,
    reads_labels,
    recomputes,
    set_eval,
    set_train,
)
from hf_freeze.debugging.report import SampleReport
from hf_freeze.debugging.rows import Row
from hf_freeze.debugging.subject import Subject
from hf_freeze.debugging.variants import other_contents

MOST_PASSES = 12


class Examination:
    """Takes one row through one subject. `report()` may be called once; the caller puts everything back."""

    def __init__(self, subject: Subject, row: Row, *, full: bool, backward: bool, stale: Sequence[str]) -> None:
        self.subject, self.row, self.full, self.backward = subject, row, full, backward
        self.runner = Runner(subject)
        self.checks: list[Check] = []
        self.facts: facts.Facts = {}
        self.statuses: dict[str, gradients.GradientStatus] = {}
        self._flags = {path: module.training for path, module in subject.model.named_modules()}
        self._stale = stale
        self._labels: torch.Tensor | None = None
        self._logits: torch.Tensor | None = None

    def report(self) -> SampleReport:
        """Look at everything that can be looked at."""
        self.facts["sample"] = {"origin": self.row.origin, "index": self.row.index, "seed": self.row.seed}
        self.row, made, wrong = make_batch(self.subject, self.row)
        self._add(*wrong)
        if made is not None:
            batch = self.subject.place(made)
            self._look_at_inputs(batch)
            self._look_at_outputs(batch)
        self._add(training.check_plan(self.subject, self._stale), training.check_optimizer(self.subject))
        self.facts["model"] = facts.model_facts(self.subject.model, self._flags)
        self.facts["cost"] = round(self.runner.cost, 2)
        logits = None if self._logits is None else self._logits.detach().cpu()
        return SampleReport(without_consequences(self.checks), logits, self.statuses, self.facts)

    def _add(self, *checks: Check | None) -> None:
        self.checks += [check for check in checks if check is not None]

    def _look_at_inputs(self, batch: dict[str, Any]) -> None:
        subject = self.subject
        for module in subject.model.modules():
            vars(module).pop("_compiled_call_impl", None)  # one row is no reason to compile
        deaf = set_eval(subject.model)
        self._labels = labels.label_in(subject, batch)
        self._add(
            inputs.check_modes(self._flags, subject.model, deaf),
            inputs.check_weights(subject.model),
            inputs.check_inputs(batch),
            inputs.check_truncated(subject, self.row, batch),
            inputs.check_unknown(subject, batch),
        )
        if "label_dtype" not in names_in(self.checks):
            self._add(labels.check_present(subject, self.row, batch))
        self._add(labels.check_names(subject, self.row))
        self.facts["sample"] = facts.sample_facts(subject, self.row, batch, self._labels)
        self.facts["inputs"] = facts.input_facts(batch)

    def _look_at_outputs(self, batch: dict[str, Any]) -> None:
        needs_label = reads_labels(self.subject) and self._labels is not None
        plain = self.runner.run(batch, score=needs_label)
        if plain.error is not None and self._labels is not None and not needs_label and not _is_out_of_range(plain):
            needs_label, plain = True, self.runner.run(batch)
        length = inputs.check_length(self.subject, batch, plain.error)
        too_long = length is not None and length.status != "ok"
        out_of_range = plain.error if _is_out_of_range(plain) and not too_long else None
        self._add(length, inputs.check_vocabulary(self.subject, batch, _as_out_of_range(out_of_range)))
        if plain.error is not None and names_in(self.checks) & {"length", "vocabulary"}:
            return
        if plain.error is not None or plain.logits is None:
            self._add(_no_logits(plain))
            return
        self._logits = plain.logits
        fits = self._look_at_labels(plain.logits)
        scored = self._scored(batch, fits, needs_label)
        self._look_at_logits(batch, plain.logits, scored, needs_label)

    def _look_at_labels(self, logits: torch.Tensor) -> bool:
        """Hold the label against the head; return whether a loss can be computed."""
        if self._labels is None:
            return False
        checked = labels.check_range(self.subject, self.row, self._labels, logits)
        self._add(checked)
        return (
            checked is None
            or checked.status != "failed"
            or "occurs in" in checked.message
            or "The data" in checked.message
        )

    def _scored(self, batch: dict[str, Any], fits: bool, needs_label: bool) -> Pass:
        """Run once more, with the label where it fits, and with a graph."""
        model, sharded = self.subject.model, is_sharded(self.subject.model)
        with _some_graph(model):
            scored = self.runner.run(batch, gradients=not sharded, score=fits or needs_label)
            if scored.error is not None and fits:
                self._judge_label(scored)
                again = self.runner.run(batch, gradients=not sharded, score=needs_label)
                return again if again.error is None else Pass()
        if fits and self._judge_label(scored):
            return scored
        return Pass(scored.logits)

    def _judge_label(self, scored: Pass) -> bool:
        """Add the check of the label's dtype; return whether there is a loss to look at."""
        assert self._labels is not None
        assert self._logits is not None
        checked = labels.check_dtype(self.subject, self._labels, self._logits, scored.error)
        self._add(checked)
        if checked is not None and checked.status != "ok":
            return False
        if scored.error is not None:
            self._add(losses.raises_in_loss(scored.error))
            return False
        return True

    def _look_at_logits(self, batch: dict[str, Any], plain: torch.Tensor, scored: Pass, needs_label: bool) -> None:
        weights_bad = "weights_finite" in names_in(self.checks)
        finite = bool(torch.isfinite(plain).all())
        if not weights_bad:
            self._add(outputs.check_finite(self.runner, batch, plain))
        found = self._look_at_loss(scored, finite)
        self._predict(plain, scored, found)
        if not finite:
            return
        repeatable = self._repeatable(batch, plain, scored.logits, needs_label)
        changed = other_contents(self.subject, batch)
        other = None if changed is None else self.runner.run(changed, score=needs_label).logits
        seen = [] if other is None else [other]
        if other is not None:
            self._add(outputs.check_sensitive(plain, other))
        graph = scored.logits if scored.logits is not None else plain
        self._add(outputs.check_no_probabilities(graph, seen, loss_kind=found.kind if found else None))
        kind = self.facts["output"]["kind"]
        self._add(outputs.check_initial_loss(self.subject, plain, is_classifier=kind in ("binary", "classes")))
        gap = distance(plain, other) if other is not None and other.shape == plain.shape else 0.0
        room = PaddingRoom(self.runner, self.row, batch, plain, gap if math.isfinite(gap) else 0.0)
        constant = "sensitive" in names_in(self.checks)
        self._add(*check_padding(room, judge_moves=repeatable and not constant and other is not None))
        self._look_at_training(batch, scored, changed, repeatable=repeatable, gap=gap)

    def _look_at_loss(self, scored: Pass, finite: bool) -> losses.LossFinding | None:
        loss, taken = scored.loss, self.subject.trainer is not None or scored.loss is not None
        if self._labels is None or not finite or (scored.logits is None and loss is None):
            return None
        if not losses.is_scalar(loss):
            judged = {check.name for check in self.checks}
            if taken and "loss" not in names_in(self.checks) and "label_dtype" in judged - names_in(self.checks):
                self._add(losses.no_loss(self.subject.trainer is not None, loss))
            return None
        logits = scored.logits if scored.logits is not None else self._logits
        assert logits is not None
        found = losses.explain(self.subject, logits, self._labels, loss)
        binary = facts.is_binary(self.subject) or _two_valued(self.subject, self.row)
        self._add(losses.check_loss(self.subject, found, loss, binary=binary, warned=scored.warned))
        columns = logits.shape[-1] if logits.ndim > 1 else 1
        uniform = 2 if columns == 1 and (found.kind or "").startswith("binary") else columns
        self.facts["loss"] = {
            "value": found.value,
            "kind": found.kind,
            "recomputed": None if found.plain is None else found.plain.value,
            "recomputed_as": None if found.plain is None else found.plain.kind,
            "classes": uniform,
            "uniform": math.log(uniform) if uniform > 1 else None,
        }
        return found

    def _predict(self, plain: torch.Tensor, scored: Pass, found: losses.LossFinding | None) -> None:
        kind = facts.kind_of(self.subject, plain, self._labels, found.kind if found else None)
        squashed = scored.logits is not None and outputs.squashed_by(scored.logits) is not None
        self.facts["output"] = facts.output_facts(
            self.subject, plain, kind=kind, head="probability" if squashed else "logits"
        )

    def _repeatable(self, batch: dict[str, Any], plain: torch.Tensor, again: Any, needs_label: bool) -> bool:
        if again is None or again.shape != plain.shape or distance(plain, again) > noise(plain):
            # The loss may have made logits of its own: compare like with like.
            again = self.runner.run(batch, score=needs_label).logits
        if again is None:
            return False
        checked = outputs.check_repeatable(plain, again)
        self._add(checked)
        return checked.status == "ok"

    def _look_at_training(
        self, batch: dict[str, Any], scored: Pass, changed: Any, *, repeatable: bool, gap: float
    ) -> None:
        has_loss = losses.is_scalar(scored.loss)
        if has_loss:
            self._add(training.check_loss_scale(self.runner, batch, scored.loss))
        if self.backward:
            self._look_at_gradients(batch, scored, repeatable)
        if self.full and changed is not None and repeatable and "padding" not in {c.name for c in self.checks}:
            self._add(outputs.check_neighbours(self.runner, batch, changed, self._logits, gap))
        if self.full:
            set_train(self.subject.model)
            self._add(outputs.check_train_mode(self.runner.run(batch, score=has_loss), has_loss))
            set_eval(self.subject.model)

    def _look_at_gradients(self, batch: dict[str, Any], scored: Pass, repeatable: bool) -> None:
        model = self.subject.model
        target = scored.loss if losses.is_scalar(scored.loss) else None
        if target is None and scored.logits is not None:
            target = scored.logits.float().square().sum()  # no label: what the logits depend on
        if target is None or "weights_finite" in names_in(self.checks):
            return
        if recomputes(model) or is_sharded(model):
            target = self._anew(batch, target)
        self.statuses = gradients.gradient_statuses(target, model)
        self.runner.cost += 2
        if repeatable and self._logits is not None:
            statuses = gradients.tell_unused(
                self.statuses, model, self._moves(batch), passes=int(MOST_PASSES - self.runner.cost - 2)
            )
            self.statuses = statuses
        self._add(gradients.check_gradients(self.statuses, model))

    def _anew(self, batch: dict[str, Any], target: torch.Tensor) -> torch.Tensor:
        """Make the loss of a sharded model right before its backward pass, as its hooks expect.

        Activation checkpointing works in train mode alone, and is where gradients get lost; dropout stays off.
        """
        for module in self.subject.model.modules() if recomputes(self.subject.model) else ():
            module.training = not isinstance(module, (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm))
        made = self.runner.run(batch, gradients=True)
        set_eval(self.subject.model)
        return made.loss if losses.is_scalar(made.loss) else target

    def _moves(self, batch: dict[str, Any]) -> Callable[[], bool]:
        before = self._logits
        needs_label = reads_labels(self.subject)

        def moves() -> bool:
            after = self.runner.run(batch, score=needs_label).logits
            return before is None or after is None or distance(before, after) > noise(before)

        return moves


def _is_out_of_range(made: Pass) -> bool:
    return isinstance(made.error, OutOfRange) or (
        isinstance(made.error, IndexError) and "index out of range in self" in str(made.error)
    )


def _as_out_of_range(error: Exception | None) -> Exception | None:
    """Read torch's own error as ours where nobody watched the embedding."""
    if error is None or isinstance(error, OutOfRange):
        return error
    return OutOfRange("an embedding", nn.Embedding(1, 1), torch.tensor([0]))


def _no_logits(made: Pass) -> Check:
    if made.error is None:
        return failed(
            "forward", "The model returned no floating-point tensor that could be logits. What does forward return?"
        )
    said = str(made.error).splitlines()[0] if str(made.error) else ""
    return failed("forward", f"The model raised {type(made.error).__name__}: {said:.200}")


@contextmanager
def _some_graph(model: nn.Module) -> Iterator[None]:
    """Give a frozen model a graph for one pass: it shows what made the logits."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    lent = parameters[-1:] if not any(p.requires_grad for p in parameters) else []
    for parameter in lent:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in lent:
            parameter.requires_grad_(False)


def _two_valued(subject: Subject, row: Row) -> bool:
    """Whether the labels of the data set are 0 and 1, both of them, and nothing else."""
    values = [other[name] for other in row.others for name in subject.label_names if name in other]
    found = {float(value) for value in values if isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0}
    return len(values) >= 8 and found == {0.0, 1.0}
