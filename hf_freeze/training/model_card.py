"""The model card of a Trainer says what trained, by which plan, and how to apply the threshold."""

import json
import numbers
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from hf_freeze.binary.metrics import BinaryClassificationMetrics
from hf_freeze.binary.result import ThresholdResult
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.training.attributes import replaced
from hf_freeze.training.planned_training import PlannedTraining
from hf_freeze.training.weighted_loss import SHIFTED
from hf_freeze.whole_files import write_text

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_HEADING = "## What trained"


class ModelCardTrainerMixin(_Base):
    """Adds a section to the model card that the Trainer writes, and rounds the figures in the rest of it."""

    _freezing: PlannedTraining

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card as the Trainer does, with what trained, by which plan, and the threshold."""
        rounded = [{name: _rounded(value) for name, value in entry.items()} for entry in self.state.log_history]
        with replaced(self.state, log_history=rounded):
            super().create_model_card(*args, **kwargs)
        card, resolved = Path(str(self.args.output_dir)) / "README.md", self._freezing.required_bound.resolved
        if not self.is_world_process_zero() or not card.exists():
            return
        metrics = self.compute_metrics
        tuned = metrics.result if isinstance(metrics, BinaryClassificationMetrics) else None
        written = card.read_text(encoding="utf-8").partition(f"\n{_HEADING}\n")[0].rstrip()
        weighted = getattr(self, "weighted_loss", None)
        loss = "" if weighted is None else f"\n### The loss\n\nThe loss was the {weighted}. {SHIFTED}\n"
        write_text(
            card, f"{written}\n\n{_HEADING}\n\n{_section(resolved, tuned, trained=self._freezing.trained)}{loss}"
        )


def _section(resolved: ResolvedPlan, tuned: ThresholdResult | None, *, trained: frozenset[str]) -> str:
    """Say what trained and by which plan, and, where a threshold was tuned, how to apply it."""
    total = sum(resolved.sizes.values())
    count = resolved.size_of(trained)
    plan = json.dumps({name: value for name, value in resolved.plan.to_dict().items() if value})
    text = (
        f"{count:,} of {total:,} parameters trained ({count / max(total, 1):.1%}); the others were frozen, and are "
        f"those of the model that training began with.\n\n```\n{resolved}\n```\n\n"
        f"The plan, as `hf_freeze.FreezePlan.from_dict` reads it:\n\n```json\n{plan}\n```\n"
    )
    return text if tuned is None else f"{text}\n{_HOW_TO_DECIDE.format(**_figures(tuned))}"


_HOW_TO_DECIDE = """### The decision threshold

A row gets label {positive} when its margin is at least {threshold}, a probability of {probability}. \
{found} \
The threshold is saved with the weights; argmax, or a probability of 0.5, would ignore it.

```python
from hf_freeze import load_threshold, predict_binary

threshold = load_threshold("path/to/this/folder")
labels = predict_binary(logits, threshold).label
```
"""


def _figures(tuned: ThresholdResult) -> dict[str, str]:
    found = "It was given, not tuned."
    if tuned.value is not None:
        expected = "" if tuned.oob_value is None else f"; expect {tuned.oob_value:.4g} on fresh rows"
        rows = f"{tuned.n_pos + tuned.n_neg:,} rows"
        found = f"Tuned on {rows}, it reaches {tuned.objective} {tuned.value:.4g} there{expected}."
    return {
        "positive": str(tuned.positive),
        "threshold": f"{tuned.threshold:.4g}",
        "probability": f"{tuned.probability:.4g}",
        "found": found,
    }


def _rounded(value: Any) -> Any:
    is_fraction = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    return float(f"{value:.4g}") if is_fraction else value
