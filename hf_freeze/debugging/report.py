"""What `debug_sample` returns: what was seen, what was checked, and both on one screen."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hf_freeze.debugging.gradients import GradientStatus, by_part
from hf_freeze.debugging.sample_check import Check

_WIDTH = 110
_MARGIN = 17
_TEXT_LINES = 4
_WORTH_SAYING = ("loss", "initial_loss", "loss_scale", "gradients", "plan", "optimizer")
"""Checks whose sentence is worth showing even where nothing is wrong."""
_SIGNS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}


@dataclass(frozen=True, eq=False)
class SampleReport:
    """What one sample showed. `print(report)` fills one screen; `to_dict()` is JSON-able.

    Attributes:
        checks: Every `Check` that applied. `report[name]` is the one of this name.
        logits: As the model gave them, on the CPU; None when there were none.
        probability: Of the positive class (two classes, one logit) or of the predicted one; None for regression.
        label: The id that is predicted, at the tuned threshold where there is one.
        gradients: With `backward=True`, by parameter: ok, zero, missing, not finite, frozen or unused.
        facts: What was seen, in plain values, by part: "sample" (origin, index, seed, text, tokens, target), "inputs"
            (shape, dtype, device and range of each), "output" (the same of the logits; kind, margin, probability,
            label, threshold), "loss" (value, recomputed), "model" (class, parameters, trainable, modes), and "cost" in
            forward passes. Parts that a broken sample did not reach are missing.
    """

    checks: tuple[Check, ...]
    logits: torch.Tensor | None = None
    gradients: Mapping[str, GradientStatus] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no check failed. Warnings do not count."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def probability(self) -> float | None:
        """Probability of the positive class, or of the predicted one where there are more than two."""
        found: float | None = self.facts.get("output", {}).get("probability")
        return found

    @property
    def label(self) -> int | None:
        """Id of the predicted class."""
        found: int | None = self.facts.get("output", {}).get("label")
        return found

    @property
    def loss(self) -> float | None:
        """The loss of the sample, as training would compute it."""
        found: float | None = self.facts.get("loss", {}).get("value")
        return found

    def __getitem__(self, name: str) -> Check:
        """Return the check of this name."""
        return {str(check.name): check for check in self.checks}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON-able values; numbers that JSON does not know become texts."""
        few = self.logits is not None and self.logits.numel() <= 1_000
        found: dict[str, Any] = _plain(
            {
                "ok": self.ok,
                "checks": [asdict(check) for check in self.checks],
                "probability": self.probability,
                "label": self.label,
                "logits": self.logits.float().tolist() if few and self.logits is not None else None,
                "gradients": dict(self.gradients),
                **self.facts,
            }
        )
        return found

    def __repr__(self) -> str:
        bad = [check.name for check in self.checks if check.status != "ok"]
        return f"SampleReport(ok={self.ok}, checks={len(self.checks)}, not ok={bad}, label={self.label})"

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _lines(report: SampleReport) -> Iterator[str]:
    facts = report.facts
    yield from _sample_lines(facts.get("sample", {}))
    for name, tensor in facts.get("inputs", {}).items():
        yield _row(name, _tensor(tensor))
    if output := facts.get("output"):
        yield _row("logits", f"{_tensor(output)}{_values(report.logits)}")
        yield from _prediction_lines(output)
    if loss := facts.get("loss"):
        yield _row("loss", _loss(loss))
    if model := facts.get("model"):
        share = 100 * model["trainable"] / max(model["parameters"], 1)
        counts = f"{model['trainable']:,} of {model['parameters']:,} parameters train ({share:.1f} %)"
        yield _row("model", f"{model['class']}: {counts}; {_modes(model['modes'])}")
    for part, counted in by_part(report.gradients).items() if report.gradients else ():
        yield _row(part, "gradient " + ", ".join(f"{status} {n}" for status, n in counted.items()))
    yield ""
    yield from _check_lines(report)


def _sample_lines(sample: Mapping[str, Any]) -> Iterator[str]:
    if not sample:
        return
    place = "" if sample.get("index") is None else f"row {sample['index']} of "
    drawn = "" if sample.get("seed") is None else f", drawn with seed {sample['seed']}"
    yield _row("sample", f"{place}{sample['origin']}{drawn}")
    if sample.get("text"):
        lines = textwrap.wrap(sample["text"], _WIDTH - _MARGIN)
        shown = lines if len(lines) <= _TEXT_LINES else [*lines[: _TEXT_LINES - 1], f"[...] {lines[-1]}"]
        yield from (_row("text" if i == 0 else "", line) for i, line in enumerate(shown))
    if "tokens" in sample:
        unknown = "" if sample["unknown"] is None else f", {sample['unknown']} unknown"
        yield _row("tokens", f"{sample['tokens']}{unknown}, {sample['padding']} padding")
    if "target" in sample:
        yield _row("label", f"{sample['target']}" + (f" ({sample['target_name']})" if sample["target_name"] else ""))


def _prediction_lines(output: Mapping[str, Any]) -> Iterator[str]:
    named = f" ({output['label_name']})" if output.get("label_name") else ""
    if "margin" in output:
        reading = (
            f"margin {output['margin']:+.4f}, probability {output['probability']:.4f} of class {output['positive']}"
        )
        if output["threshold"] is None:
            yield _row("prediction", f"{output['label']}{named} at 0.5: {reading}; no tuned threshold")
        else:
            yield _row(
                "prediction",
                f"{output['label']}{named} at the tuned threshold {output['threshold']:+.4f} (distance "
                f"{output['distance']:+.4f}), {output['label_at_half']} at 0.5: {reading}",
            )
    elif "label" in output:
        yield _row("prediction", f"{output['label']}{named}, probability {output['probability']:.4f}")
    elif "value" in output:
        yield _row("prediction", f"{output['value']:.4f}")


def _check_lines(report: SampleReport) -> Iterator[str]:
    order = {"failed": 0, "warning": 1, "ok": 2}
    quiet = [check.name for check in report.checks if check.status == "ok" and check.name not in _WORTH_SAYING]
    for check in sorted(report.checks, key=lambda one: order[one.status]):
        if check.name not in quiet:
            text = f"{_SIGNS[check.status]} {check.name}: {check.message}"
            yield from textwrap.wrap(text, _WIDTH, subsequent_indent=" " * 8)
    yield from textwrap.wrap(f"{_SIGNS['ok']} {', '.join(quiet)}", _WIDTH, subsequent_indent=" " * 8)
    bad = [sum(check.status == status for check in report.checks) for status in ("failed", "warning")]
    yield f"{len(report.checks)} checks: {bad[0]} failed, {bad[1]} warnings."


def _row(name: str, text: str) -> str:
    return f"{name:<{_MARGIN}}{text}".rstrip() if len(name) < _MARGIN else f"{name}  {text}"


def _tensor(facts: Mapping[str, Any]) -> str:
    shape = "x".join(map(str, facts["shape"])) or "scalar"
    span = f", {_number(facts['min'])} to {_number(facts['max'])}" if "min" in facts else ""
    return f"{shape} {facts['dtype']} on {facts['device']}{span}"


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _values(logits: torch.Tensor | None) -> str:
    if logits is None or logits.numel() > 6:
        return ""
    return ": " + ", ".join(f"{value:+.4f}" for value in logits.float().flatten().tolist())


def _loss(loss: Mapping[str, Any]) -> str:
    recomputed = (
        f"; {loss['recomputed_as']} from the logits {loss['recomputed']:.4f}" if loss.get("recomputed_as") else ""
    )
    uniform = f"; ln({loss['classes']}) = {loss['uniform']:.4f}" if loss.get("uniform") else ""
    return f"{loss['value']:.4f}{recomputed}{uniform}"


def _modes(modes: Mapping[str, str]) -> str:
    kinds = set(modes.values())
    if len(kinds) == 1:
        return f"all in {kinds.pop()} mode"
    return ", ".join(f"{part} {mode}" for part, mode in modes.items())
