"""The checks of `debug_sample`: the name of each, what it needs to run at all, and what explains its failure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from hf_freeze.debugging import gradients, inputs, losses, optimizer_checks, outputs, row_label
from hf_freeze.debugging.look import Look
from hf_freeze.debugging.new_head import check_head
from hf_freeze.debugging.passes import out_of_range
from hf_freeze.debugging.sample_check import Check, CheckName
from hf_freeze.debugging.weighted_losses import check_weights

_Need: TypeAlias = Callable[[Look], bool]


@dataclass(frozen=True)
class _Entry:
    """A check. `explained_by` names checks of a cause; where one of them is not ok, a failure here is a consequence."""

    name: CheckName
    check: Callable[[Look], Check | None]
    needs: tuple[_Need, ...] = ()
    explained_by: tuple[CheckName, ...] = ()


def run(look: Look) -> tuple[Check, ...]:
    """Ask every check that can be asked, and name each cause once."""
    asked = (entry for entry in _TABLE if all(need(look) for need in entry.needs))
    return without_consequences(check for entry in asked if (check := entry.check(look)) is not None)


def without_consequences(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Leave out checks that failed only as a consequence of others.

    >>> from hf_freeze.debugging.sample_check import failed
    >>> checks = [failed("inputs", ""), failed("logits_finite", ""), Check("plan", "ok", "")]
    >>> [check.name for check in without_consequences(checks)]
    ['inputs', 'plan']
    """
    checks = tuple(checks)
    bad = {check.name for check in checks if check.status != "ok"}
    explained = {entry.name for entry in _TABLE if bad.intersection(entry.explained_by)}
    return tuple(check for check in checks if check.status == "ok" or check.name not in explained)


# --- what a check may need


def _a_batch(look: Look) -> bool:
    """Tell whether the collator made a batch."""
    return bool(look.batch)


def _logits(look: Look) -> bool:
    """Tell whether the model ran, and returned logits."""
    return bool(look.batch) and look.logits is not None


def _finite_logits(look: Look) -> bool:
    """Tell whether the logits are numbers."""
    return bool(look.batch) and look.is_finite


def _a_label(look: Look) -> bool:
    """Tell whether the label reaches the model."""
    return look.label is not None


def _a_loss(look: Look) -> bool:
    """Tell whether a loss came back."""
    return look.loss is not None


def _finite_weights(look: Look) -> bool:
    """Tell whether the weights are numbers."""
    return look.weights.status == "ok"


def _a_backward_pass(look: Look) -> bool:
    """Tell whether a backward pass was asked for, and there is something to differentiate."""
    return look.backward and bool(look.statuses)


def _all_checks(look: Look) -> bool:
    """Tell whether the caller asked for all checks."""
    return look.full


def _company(look: Look) -> bool:
    """Another row to run beside, where padding has not run the row in a larger batch already."""
    return look.changed is not None and look.is_repeatable and look.fault_of_padding("padding") is None


# --- checks that put several looks together


def _worst(*found: Check | None) -> Check | None:
    """Return the first that is not ok, else the last: the later it is, the more it knows."""
    checks = [check for check in found if check is not None]
    return next((check for check in checks if check.status != "ok"), checks[-1] if checks else None)


def _inputs(look: Look) -> Check | None:
    return _worst(inputs.check_inputs(look.batch), look.media)


def _labels(look: Look) -> Check | None:
    if look.faults_of_row:
        return look.fault_of_row("labels")
    return _worst(look.fault_of_labels("labels"), row_label.check_present(look.inspected, look.row, look.batch))


def _vocabulary(look: Look) -> Check | None:
    too_long = look.length is not None and look.length.status != "ok"
    return inputs.check_vocabulary(look.inspected, look.batch, None if too_long else out_of_range(look.error))


def _forward(look: Look) -> Check | None:
    if look.logits is not None or (look.media is not None and look.media.status == "failed"):
        return None
    return outputs.no_logits(look.error)


def _label_dtype(look: Look) -> Check | None:
    return _worst(look.fault_of_row("label_dtype"), look.own_dtype, look.fault_of_labels("label_dtype"))


def _loss(look: Look) -> Check | None:
    inspected, found = look.inspected, look.loss_finding
    if look.loss_error is not None and look.own_dtype is not None and look.own_dtype.status == "ok":
        return losses.raises_in_loss(look.loss_error)
    if found is not None:
        assert look.label is not None
        if (unweighted := check_weights(look.runner, look.batch, look.label)) is not None:
            return unweighted
        return losses.check_loss(inspected, found, binary=look.is_binary, warned=look.scored.warned)
    taken = inspected.trainer is not None or look.scored.loss is not None
    if look.label_counts and taken and look.loss is None:
        return losses.no_loss(inspected.trainer is not None, look.scored.loss)
    return None


def _no_probabilities(look: Look) -> Check:
    kind = look.loss_finding.kind if look.loss_finding else None
    seen = [] if look.other_logits is None else [look.other_logits]
    return outputs.check_no_probabilities(look.logits_with_graph, seen, loss_kind=kind)


def _initial_loss(look: Look) -> Check | None:
    assert look.logits is not None
    return outputs.check_initial_loss(look.inspected, look.logits, is_classifier=look.kind in ("binary", "classes"))


def _logits_finite(look: Look) -> Check:
    assert look.logits is not None
    return outputs.check_finite(look.runner, look.batch, look.logits)


def _loss_scale(look: Look) -> Check | None:
    assert look.loss is not None
    return optimizer_checks.check_loss_scale(look.runner, look.batch, look.loss)


def _neighbours(look: Look) -> Check | None:
    assert look.changed is not None
    return outputs.check_neighbours(look.runner, look.batch, look.changed, look.logits, look.sensitivity)


def _head(look: Look) -> Check | None:
    names, planned = optimizer_checks.ever_trainable(look.inspected)
    return check_head(look.inspected, names, planned=planned)


_BROKEN: tuple[CheckName, ...] = ("weights_finite", "logits_finite", "inputs")
_TABLE: tuple[_Entry, ...] = (
    _Entry("collator", lambda look: look.fault_of_row("collator")),
    _Entry("modes", lambda look: inputs.check_modes(look.flags, look.model, look.ignores_eval), (_a_batch,)),
    _Entry("weights_finite", lambda look: look.weights, (_a_batch,)),
    _Entry("inputs", _inputs, (_a_batch,)),
    _Entry("truncated", lambda look: inputs.check_truncated(look.inspected, look.row, look.batch), (_a_batch,)),
    _Entry("tokens", lambda look: inputs.check_unknown(look.inspected, look.batch), (_a_batch,)),
    _Entry("labels", _labels),
    _Entry("label_names", lambda look: row_label.check_names(look.inspected, look.row), (_a_batch,)),
    _Entry("length", lambda look: look.length, (_a_batch,)),
    _Entry("vocabulary", _vocabulary, (_a_batch,)),
    _Entry("forward", _forward, (_a_batch,), explained_by=("length", "vocabulary")),
    _Entry("label_range", lambda look: _worst(look.own_range, look.fault_of_labels("label_range")), (_logits,)),
    _Entry("label_dtype", _label_dtype),
    _Entry("logits_finite", _logits_finite, (_logits, _finite_weights), explained_by=("weights_finite", "inputs")),
    _Entry("loss", _loss, (_finite_logits, _a_label), explained_by=(*_BROKEN, "label_range")),
    _Entry("repeatable", lambda look: look.repeatable, (_finite_logits,)),
    _Entry("sensitive", lambda look: look.sensitive, (_finite_logits,), explained_by=("attention_mask",)),
    _Entry("logits_not_probabilities", _no_probabilities, (_finite_logits,)),
    _Entry("initial_loss", _initial_loss, (_finite_logits,)),
    _Entry("attention_mask", lambda look: look.fault_of_padding("attention_mask"), (_finite_logits,)),
    _Entry("pad_token", lambda look: look.fault_of_padding("pad_token"), (_finite_logits,)),
    _Entry(
        "padding_side",
        lambda look: look.fault_of_padding("padding_side"),
        (_finite_logits,),
        explained_by=("repeatable",),
    ),
    _Entry("padding", lambda look: look.fault_of_padding("padding"), (_finite_logits,), explained_by=("repeatable",)),
    _Entry("loss_scale", _loss_scale, (_finite_logits, _a_loss)),
    _Entry(
        "gradients",
        lambda look: gradients.check_gradients(look.statuses, look.model),
        (_finite_logits, _a_backward_pass),
        explained_by=(*_BROKEN, "label_range", "attention_mask", "sensitive"),
    ),
    _Entry("neighbours", _neighbours, (_finite_logits, _all_checks, _company), explained_by=("repeatable",)),
    _Entry(
        "train_mode",
        lambda look: outputs.check_train_mode(*look.in_train_mode),
        (_finite_logits, _all_checks),
        explained_by=(*_BROKEN, "label_range"),
    ),
    _Entry("plan", lambda look: optimizer_checks.check_plan(look.inspected, look.stale)),
    _Entry("optimizer", lambda look: optimizer_checks.check_optimizer(look.inspected)),
    _Entry("head", _head),
)
