"""When an evaluation may tune, whatever it tunes: the rule against leaks, shared by one label and by several."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np

from hf_freeze.binary import metric_values
from hf_freeze.binary.margin import Head, check_head
from hf_freeze.binary.metric_values import finite
from hf_freeze.binary.result import ThresholdResult, short, warn_once_per_run
from hf_freeze.binary.search import ThresholdError, ThresholdSearch
from hf_freeze.errors import FreezeError


class TunedMetrics:
    """Metrics that hold what they tuned: what a Trainer sees of those of one label and of several."""

    is_given = False
    """Whether the threshold was given at construction: then no checkpoint replaces it."""

    sample_weight: str | None = None
    """The label column that has a weight for each row, if there is one."""

    def __init__(self, search: ThresholdSearch, *, tune_on: str, head: Head) -> None:
        check_head(head)
        if not isinstance(tune_on, str):
            raise FreezeError(f"tune_on={tune_on!r} must be the name of an eval set.")
        self.search = search
        self._head: Head = head
        self._tune_on = tune_on
        self._frozen = False
        self._forced: bool | None = None  # by tuning() or applying()
        self._allowed = True  # by the Trainer, if there is one that knows
        self._batches: list[Any] = []
        self._warned: set[str] = set()

    @property
    def result(self) -> Any:
        """What is in use and how it was found; None as long as nothing was tuned or given."""
        raise NotImplementedError

    def use(self, found: Any) -> None:
        """Replace what is in use, as after loading a checkpoint; None forgets it."""
        raise NotImplementedError

    def read_names(self, model: Any) -> None:
        """Take the label names from the model's config. Raises `FreezeError` for a head that does not fit."""
        raise NotImplementedError

    def comparable(self, outputs: Any) -> Any:
        """Return outputs of a model in the form that `refuse_other_scores` compares, one score per entry."""
        return outputs

    def warn_of_calls(self, logits: Any) -> None:
        """Warn when far more or fewer of these rows, which have no labels, are called positive than was expected."""

    def _read(self, logits: Any, labels: Any) -> Any:
        raise NotImplementedError

    def _join(self, batches: Sequence[Any]) -> Any:
        raise NotImplementedError

    def _metrics_of(self, rows: Any) -> dict[str, float]:
        raise NotImplementedError

    def _warn_of_regression(self, config: Any) -> None:
        """Say, or refuse, that the model's own loss does not train scores for this."""

    def _start_with(self, given: Any, *, argument: str, kinds: str) -> None:
        """Tune, or go by what was given and never change it."""
        if given is None or (isinstance(given, str) and given != "tune"):
            raise FreezeError(f'Unknown {argument}={given!r}. Give "tune", {kinds}.')
        self.is_given = not isinstance(given, str)
        if self.is_given:
            self.use(given)
            self.freeze()

    @property
    def head(self) -> Head:
        """How the model's outputs are read, as in `binary_margin`."""
        return self._head

    @property
    def _known_head(self) -> Literal["logits", "probability"]:
        return "probability" if self._head == "probability" else "logits"

    @property
    def tunes(self) -> bool:
        """Whether an evaluation that runs now tunes the threshold.

        `freeze()` decides before `tuning()` and `applying()`, and these before the Trainer's `evaluation()`.
        """
        if self._frozen:
            return False
        return self._allowed if self._forced is None else self._forced

    def freeze(self) -> None:
        """End tuning: from now on the threshold is applied."""
        self._frozen = True

    def tuning(self) -> AbstractContextManager[None]:
        """Tune on whatever is evaluated inside this context. Raises `FreezeError` after `freeze()`."""
        return self._forced_to(True)

    def applying(self) -> AbstractContextManager[None]:
        """Apply the threshold to whatever is evaluated inside this context."""
        return self._forced_to(False)

    @contextmanager
    def _forced_to(self, tune: bool) -> Iterator[None]:
        if tune and self._frozen:
            raise FreezeError(f"The threshold was frozen: freeze() ended tuning. Use a new {type(self).__name__}.")
        before, self._forced = self._forced, tune
        try:
            yield
        finally:
            self._forced = before

    @contextmanager
    def evaluation(self, metric_key_prefix: str = "eval", *, in_training: bool) -> Iterator[None]:
        """Enclose one evaluation of one set: it tunes only if `in_training` and the set is the one to tune on.

        `metric_key_prefix` is the Trainer's: "eval", "eval_<name>", "test". Rows left over from an evaluation that was
        aborted halfway are dropped.
        """
        self._batches.clear()
        is_tuning_set = metric_key_prefix in (self._tune_on, f"eval_{self._tune_on}")
        before, self._allowed = self._allowed, in_training and is_tuning_set
        try:
            yield
        finally:
            self._allowed = before

    def prepare(self, model: Any, *, eval_sets: Sequence[str] | None = None, own_loss: bool = False) -> None:
        """Take the label names from the model's config, and check its head and `tune_on`, before training.

        Args:
            model: The model that will be evaluated.
            eval_sets: The keys of `eval_dataset` when that is a dict.
            own_loss: Whether another loss than the model's own trains it.

        Raises:
            FreezeError: For a head that does not fit, and a `tune_on` that is not among the eval sets.
        """
        if not self._frozen:
            self._check_tune_on(eval_sets)
        self.read_names(model)
        if not own_loss:
            self._warn_of_regression(getattr(model, "config", None))

    def _check_tune_on(self, eval_sets: Sequence[str] | None) -> None:
        if eval_sets is None and self._tune_on != "eval":
            raise FreezeError(f'tune_on={self._tune_on!r}, but the eval set has no name. Leave tune_on="eval".')
        if eval_sets is not None and self._tune_on not in eval_sets:
            raise FreezeError(
                f"tune_on={self._tune_on!r} is not among the eval sets {list(eval_sets)}. Name one of them."
            )

    def __call__(self, eval_pred: Any, compute_result: bool | None = None) -> dict[str, float]:
        """Return the metrics of an `EvalPrediction` (or of a pair of logits and labels).

        With `batch_eval_metrics=True` the Trainer passes `compute_result`: batches are kept as one margin and one class
        per row (and label) until it is True, and until then the dict is empty.
        """
        rows = self._read(*_logits_and_labels(eval_pred))
        if compute_result is not None:
            self._batches.append(rows)
            if not compute_result:
                return {}
            rows = self._join(self._batches)
            self._batches.clear()
        return self._metrics_of(rows)

    def _objective_values(
        self, outcome: ThresholdResult | ThresholdError | None, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the objective and, where an evaluation tuned, what to expect of it and of F1 on fresh rows.

        `outcome`: what tuning came to; None where nothing was to be tuned. `values`: the metrics at the threshold now.
        """
        criterion = self.search.criterion
        tp, fp, fn, tn = (values[name] for name in ("tp", "fp", "fn", "tn"))
        worst = criterion.worst(tp + fn, fp + tn)
        value = worst if isinstance(outcome, ThresholdError) else finite(criterion.value_of((tp, fp, fn, tn)))
        if outcome is None or not self.search.n_boot:
            return {"objective": value}
        if isinstance(outcome, ThresholdError) or outcome.status == "constant":  # the threshold stayed what it was
            return {"objective": value, "objective_oob": value, "f1_oob": values["f1"]}
        if outcome.oob_counts is None or outcome.oob_value is None:
            return {"objective": value, "objective_oob": worst, "f1_oob": 0.0}
        f1_oob = float(metric_values.f1(*(np.array(count) for count in outcome.oob_counts)))
        return {"objective": value, "objective_oob": finite(outcome.oob_value), "f1_oob": f1_oob}

    def _worst_values(self, n_pos: float, n_neg: float) -> dict[str, float]:
        """Return every metric of one label at its worst, for scores that are NaN."""
        worst = self.search.criterion.worst(n_pos, n_neg)
        values = metric_values.all_zero() | {"f1_at_half": 0.0, "objective": worst}
        return values | ({"objective_oob": worst, "f1_oob": 0.0} if self.tunes and self.search.n_boot else {})

    def _warn(self, texts: Mapping[str, str]) -> None:
        for kind, text in texts.items():
            if kind not in self._warned:
                self._warned.add(kind)
                warn_once_per_run(text)


def _logits_and_labels(eval_pred: Any) -> tuple[Any, Any]:
    if isinstance(eval_pred, tuple) and len(eval_pred) == 2:
        return eval_pred
    try:
        return eval_pred.predictions, eval_pred.label_ids
    except AttributeError:
        raise FreezeError(f"Give an EvalPrediction or a pair (logits, labels), not {short(eval_pred)}.") from None
