"""One look at a model with one row: its passes, each made when a check first asks for it, and what they showed."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from hf_freeze.debugging import gradients, inputs, losses, outputs, row_label
from hf_freeze.debugging.label_checks import check_surveys, head_of, surveys
from hf_freeze.debugging.label_survey import LabelSurvey
from hf_freeze.debugging.media import check_media
from hf_freeze.debugging.outputs import is_binary, kind_of
from hf_freeze.debugging.padding import PaddingContext, check_padding
from hf_freeze.debugging.passes import (
    Pass,
    Runner,
    distance,
    noise,
    out_of_range,
    reads_labels,
    recomputes,
    set_eval,
    set_train,
    uses_fsdp2,
)
from hf_freeze.debugging.sample_check import Check, failed
from hf_freeze.debugging.variants import other_contents
from hf_freeze.model_inputs.batch import CollatorError, labels_of, make_batch, without_label
from hf_freeze.model_inputs.input_rows import Row
from hf_freeze.model_inputs.inspected_model import InspectedModel
from hf_freeze.module_types import BATCH_NORMS, DROPOUTS

_MOST_PASSES = 12


class Look:
    """What one row shows about one model. Nothing runs before it is asked for; the caller puts everything back."""

    def __init__(
        self, inspected: InspectedModel, row: Row, *, dataset: Any, full: bool, backward: bool, stale: Sequence[str]
    ) -> None:
        self.inspected, self.model = inspected, inspected.model
        self.dataset, self.full, self.backward, self.stale = dataset, full, backward, stale
        self.runner = Runner(inspected)
        self.flags = {path: module.training for path, module in self.model.named_modules()}
        self.faults_of_row: list[Check] = []
        self.row = self._with_a_number_for_label(row)
        self.batch = self._batch()
        for module in self.model.modules():
            vars(module).pop("_compiled_call_impl", None)  # one row is no reason to compile
        self.ignores_eval = set_eval(self.model)

    def _with_a_number_for_label(self, row: Row) -> Row:
        unusable = [label for label in labels_of(self.inspected, row) if label is None or isinstance(label, str)]
        if not unusable:
            return row
        self.faults_of_row.append(row_label.no_number(self.inspected, unusable[0]))
        return without_label(self.inspected, row)

    def _batch(self) -> dict[str, Any]:
        """Collate the row; return nothing where the collator fails."""
        try:
            return self.inspected.place(make_batch(self.inspected, self.row))
        except CollatorError as error:
            self.faults_of_row.append(failed("collator", str(error)))
            return {}

    def fault_of_row(self, name: str) -> Check | None:
        """Return what was wrong before the model ran, by the name of its check."""
        return next((check for check in self.faults_of_row if check.name == name), None)

    # --- the label

    @cached_property
    def label(self) -> torch.Tensor | None:
        """The label tensor of the batch."""
        return row_label.label_in(self.inspected, self.batch)

    @cached_property
    def surveys(self) -> list[LabelSurvey]:
        """The labels of every data set at hand."""
        return list(surveys(self.inspected, self.row, self.dataset))

    @cached_property
    def own_range(self) -> Check | None:
        """Whether the label of the row fits the classes of the head."""
        return (
            None
            if self.label is None or self.logits is None
            else row_label.check_range(self.inspected, self.label, self.logits)
        )

    @cached_property
    def faults_of_labels(self) -> list[Check]:
        """What is wrong with the labels of other rows; one "ok" where nothing is."""
        own = (self.own_range, self.own_dtype, self.fault_of_row("label_dtype"))
        if self.label is None or self.logits is None or any(one is not None and one.status != "ok" for one in own):
            return []
        kind = self.loss_finding.kind if self.loss_finding else None
        binary = is_binary(self.inspected)
        head = head_of(self.inspected, self.label, self.logits, loss_kind=kind, binary=binary)
        return check_surveys(head, self.surveys, self.row.class_names)

    def fault_of_labels(self, name: str) -> Check | None:
        """Return what the other labels showed, by the name of its check."""
        return next((check for check in self.faults_of_labels if check.name == name), None)

    # --- the plain pass

    @cached_property
    def _plain(self) -> tuple[Pass, bool]:
        """The pass without a graph, and whether it was given the label, without which some models do not run."""
        with_label = reads_labels(self.inspected) and self.label is not None
        made = self.runner.run(self.batch, score=with_label)
        if made.error is None or self.label is None or with_label or out_of_range(made.error) is not None:
            return made, with_label
        return self.runner.run(self.batch), True

    @property
    def error(self) -> Exception | None:
        """What the plain pass raised."""
        return self._plain[0].error

    @property
    def logits(self) -> torch.Tensor | None:
        """What the plain pass returned."""
        return self._plain[0].logits

    @property
    def needs_label(self) -> bool:
        """Whether the model does not run without a label."""
        return self._plain[1]

    @cached_property
    def media(self) -> Check | None:
        """What is wrong with images and sound."""
        return check_media(self.inspected, self.batch, self.error)

    @cached_property
    def length(self) -> Check | None:
        """Whether the model has positions for all tokens."""
        return inputs.check_length(self.inspected, self.batch, self.error)

    @cached_property
    def is_finite(self) -> bool:
        """Whether there are logits, and all are numbers."""
        return self.logits is not None and bool(torch.isfinite(self.logits).all())

    @cached_property
    def weights(self) -> Check:
        """Whether every weight is a number."""
        return inputs.check_weights(self.model)

    # --- the pass that training would make

    @cached_property
    def _attempt(self) -> Pass:
        """One pass with a graph, and with the label where it fits."""
        with _some_graph(self.model):
            return self.runner.run(self.batch, gradients=self._graph, score=self.label_fits or self.needs_label)

    @property
    def _graph(self) -> bool:
        return not uses_fsdp2(self.model)

    @property
    def label_fits(self) -> bool:
        """Whether there is a label that the head has a class for."""
        return self.label is not None and (self.own_range is None or self.own_range.status != "failed")

    @property
    def loss_error(self) -> Exception | None:
        """What was raised only because of the label."""
        return self._attempt.error if self.label_fits else None

    @cached_property
    def own_dtype(self) -> Check | None:
        """Whether the label of the row has the type that the loss takes."""
        if not self.label_fits or self.label is None or self.logits is None:
            return None
        return row_label.check_dtype(self.inspected, self.label, self.logits, self._attempt.error)

    @property
    def label_counts(self) -> bool:
        """Whether the label is of a class and type that the loss takes, and the loss ran."""
        return self.own_dtype is not None and self.own_dtype.status == "ok" and self.loss_error is None

    @cached_property
    def scored(self) -> Pass:
        """The pass with a graph; its loss only where the label counts."""
        if self.label_counts:
            return self._attempt
        if self._attempt.error is None:
            return Pass(self._attempt.logits)
        with _some_graph(self.model):
            again = self.runner.run(self.batch, gradients=self._graph, score=self.needs_label)
        return again if again.error is None else Pass()

    @property
    def loss(self) -> torch.Tensor | None:
        """The loss, where one came back."""
        return self.scored.loss if losses.is_scalar(self.scored.loss) else None

    @property
    def logits_with_graph(self) -> torch.Tensor:
        """The logits of the pass with a graph; without one where that pass gave none."""
        found = self.scored.logits if self.scored.logits is not None else self.logits
        assert found is not None
        return found

    @cached_property
    def loss_finding(self) -> losses.LossFinding | None:
        """What the loss is a function of."""
        if self.loss is None or self.label is None or not self.is_finite:
            return None
        return losses.explain(self.inspected, self.logits_with_graph, self.label, self.loss)

    @property
    def is_binary(self) -> bool:
        """Whether the labels are two classes, judging by metrics and data."""
        return is_binary(self.inspected) or any(survey.is_two_valued for survey in self.surveys)

    @cached_property
    def kind(self) -> str:
        """What the logits are for."""
        assert self.logits is not None
        found = self.loss_finding
        return kind_of(self.inspected, self.logits, self.label, found.kind if found else None)

    # --- the same row again, and in other company

    @cached_property
    def repeatable(self) -> Check | None:
        """Whether two passes give the same logits."""
        logits, again = self.logits, self.scored.logits
        assert logits is not None
        if again is None or again.shape != logits.shape or distance(logits, again) > noise(logits):
            # The loss may have made logits of its own: compare like with like.
            again = self.runner.run(self.batch, score=self.needs_label).logits
        return None if again is None else outputs.check_repeatable(logits, again)

    @property
    def is_repeatable(self) -> bool:
        """Whether the logits move only when their inputs do, and not by chance."""
        return self.repeatable is not None and self.repeatable.status == "ok"

    @cached_property
    def changed(self) -> dict[str, Any] | None:
        """The batch with other contents."""
        return other_contents(self.inspected, self.batch)

    @cached_property
    def other_logits(self) -> torch.Tensor | None:
        """The logits of other contents."""
        return None if self.changed is None else self.runner.run(self.changed, score=self.needs_label).logits

    @cached_property
    def sensitivity(self) -> float:
        """How far other contents move the logits; 0 where that is not known."""
        if self.other_logits is None or self.logits is None or self.other_logits.shape != self.logits.shape:
            return 0.0
        gap = distance(self.logits, self.other_logits)
        return gap if math.isfinite(gap) else 0.0

    @cached_property
    def sensitive(self) -> Check | None:
        """Whether other contents move the logits."""
        if self.other_logits is None or self.logits is None:
            return None
        return outputs.check_sensitive(self.logits, self.other_logits)

    @cached_property
    def faults_of_padding(self) -> list[Check]:
        """What padding does to the row."""
        if self.logits is None or not self.is_finite:
            return []
        context = PaddingContext(self.runner, self.row, self.batch, self.logits, self.sensitivity)
        moves = self.is_repeatable and self.sensitive is not None and self.sensitive.status == "ok"
        return check_padding(context, judge_moves=moves)

    def fault_of_padding(self, name: str) -> Check | None:
        """Return what padding showed, by the name of its check."""
        return next((check for check in self.faults_of_padding if check.name == name), None)

    # --- training

    @cached_property
    def in_train_mode(self) -> tuple[Pass, bool]:
        """A pass in train mode, and whether its loss was asked for."""
        has_loss = self.loss is not None and bool(self.loss.isfinite())
        set_train(self.model)
        made = self.runner.run(self.batch, score=has_loss)
        set_eval(self.model)
        return made, has_loss

    @cached_property
    def statuses(self) -> dict[str, gradients.GradientStatus]:
        """What becomes of every parameter in a backward pass; nothing where there is none."""
        target = self._differentiable
        if not self.backward or not self.is_finite or self.weights.status != "ok" or target is None:
            return {}
        if recomputes(self.model) or uses_fsdp2(self.model):
            target = self._anew(target)
        found = gradients.gradient_statuses(target, self.model)
        self.runner.cost += 2
        if not self.is_repeatable:
            return found
        left = int(_MOST_PASSES - self.runner.cost - 2)
        return gradients.tell_unused(found, self.model, self._moves, passes=left)

    @property
    def _differentiable(self) -> torch.Tensor | None:
        if self.loss is not None:
            return self.loss if bool(self.loss.isfinite()) else None
        logits = self.scored.logits
        # Without a label: anything that depends on all logits.
        return None if logits is None else logits.float().square().sum()

    def _anew(self, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a sharded model directly before its backward pass, as its hooks expect.

        Activation checkpointing works in train mode alone, and is where gradients get lost; dropout stays off.
        """
        for module in self.model.modules() if recomputes(self.model) else ():
            module.training = not isinstance(module, (*DROPOUTS, *BATCH_NORMS))
        made = self.runner.run(self.batch, gradients=True)
        set_eval(self.model)
        return made.loss if losses.is_scalar(made.loss) else target

    def _moves(self) -> bool:
        after = self.runner.run(self.batch, score=reads_labels(self.inspected)).logits
        return self.logits is None or after is None or distance(self.logits, after) > noise(self.logits)


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
