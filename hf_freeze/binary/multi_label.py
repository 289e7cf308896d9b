"""Several labels as `compute_metrics=` of any Trainer: a threshold for each, tuned on validation data only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary import metric_values
from hf_freeze.binary.counts import ScoreCounts, count_scores
from hf_freeze.binary.criterion import Criterion
from hf_freeze.binary.label_thresholds import LabelThresholds, read_label_matrix, read_margins, take_matrix
from hf_freeze.binary.margin import Head, ValueRange, as_numpy, refuse_probabilities
from hf_freeze.binary.metric_values import MetricOfCounts, metrics_at
from hf_freeze.binary.prevalence import calls_far_from_tuned, labels_far_from_tuned
from hf_freeze.binary.result import ThresholdResult, reasons_to_doubt, short
from hf_freeze.binary.search import Select, ThresholdError, ThresholdSearch
from hf_freeze.binary.tuning_phase import TunedMetrics
from hf_freeze.errors import FreezeError

_AVERAGED = ("f1", "precision", "recall")
_OF_LABELS = {
    "untuned": "keep their thresholds",
    "prevalence": "have another share of positives than they were tuned at",
    "calls": "are called far more or less often than expected",
}


@dataclass(frozen=True, eq=False)
class _LabelledRows:
    """`margin` (n, L) float32; `positive`, `counted` (n, L) bool: which rows have a label, and which are labelled."""

    margin: NDArray[np.float32]
    positive: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    ranges: tuple[ValueRange, ...]


class _Judged(NamedTuple):
    """One label in one evaluation: its metrics, the outcome of tuning (None: it was not tuned), and a doubt, if any."""

    values: dict[str, float]
    outcome: ThresholdResult | ThresholdError | None
    far: str | None = None


class MultiLabelMetrics(TunedMetrics):
    """Compute the metrics of a multi-label classifier at a threshold per label; tune these in validation.

    Pass an instance as `compute_metrics=`. For each label it does what `BinaryClassificationMetrics` does for its one:
    the same objectives and constraints, the same rule of when to tune, the same estimate for fresh rows. A label that
    cannot be tuned (no positive rows, say) keeps its threshold, at first margin 0, and the others are tuned; one
    warning names all of these.

    Reported: f1, precision and recall as `..._micro` and `..._macro` (scikit-learn's, with 0 where nothing is to be
    divided); exact_match, the share of fully labelled rows with every label right; auroc_macro and
    average_precision_macro, over labels with both classes; f1_at_half_macro (at margin 0); objective, the mean over the
    labels; n_rows, n_ignored, n_nonfinite, n_untuned. An evaluation that tunes also reports objective_oob and
    f1_oob_macro, the values to expect on fresh rows. And for every label `<name>/f1`, `/precision`, `/recall`,
    `/threshold` and `/n_pos`.

    Args:
        objective, beta, costs, min_precision, min_recall, max_fpr, confidence, n_boot, seed, head: As in
            `tune_threshold`, for each label.
        labels: The labels' names in the order of the logits; by default those of the model's config.
        thresholds: "tune", or `LabelThresholds` or margins by name that are applied and never changed.
        tune_on: The eval set to tune on when there are several, by its key in `eval_dataset={...}`.
        select: As in `tune_threshold`. "smoothed" loses least where labels are rare.

    Raises:
        FreezeError: For arguments that contradict each other, and in an evaluation for logits or labels that are not
            (n, L), 0 and 1. A label of -100 or NaN is left out.

    >>> metrics = MultiLabelMetrics(labels=["toxic", "spam"], n_boot=0)
    >>> logits = [[float(i), float(-i)] for i in range(200)]
    >>> reported = metrics((logits, [[int(i >= 120), int(i < 90)] for i in range(200)]))
    >>> reported["f1_macro"] > 0.95, list(metrics.result.margins)
    (True, ['toxic', 'spam'])
    """

    def __init__(  # noqa: PLR0913 - one declaration; all but the objective are keywords
        self,
        objective: str | MetricOfCounts = "f1",
        *,
        labels: Sequence[str] | None = None,
        thresholds: str | LabelThresholds | Mapping[str, float] = "tune",
        tune_on: str = "eval",
        head: Head = "auto",
        beta: float = 1.0,
        costs: Mapping[str, float] | None = None,
        min_precision: float | None = None,
        min_recall: float | None = None,
        max_fpr: float | None = None,
        confidence: float | None = None,
        select: Select = "smoothed",
        n_boot: int = 200,
        seed: int = 0,
    ) -> None:
        criterion = Criterion(
            objective=objective,
            beta=beta,
            costs=costs,
            min_precision=min_precision,
            min_recall=min_recall,
            max_fpr=max_fpr,
            confidence=confidence,
        )
        search = ThresholdSearch(criterion=criterion, select=select, n_boot=n_boot, seed=seed)
        super().__init__(search, tune_on=tune_on, head=head)
        self._given_labels = labels is not None
        self._labels = None if labels is None else _names(labels)
        self._results: dict[str, ThresholdResult] = {}
        self._start_with(thresholds, argument="thresholds", kinds="LabelThresholds, or margins by label")

    @property
    def labels(self) -> list[str] | None:
        """The names of the labels, or None while they are unknown."""
        return None if self._labels is None else list(self._labels)

    @property
    def result(self) -> LabelThresholds | None:
        """The thresholds in use and how they were found; None as long as none was tuned or given."""
        if not self._results:
            return None
        return LabelThresholds({name: self._kept(name) for name in self._labels or self._results})

    def _kept(self, name: str) -> ThresholdResult:
        return self._results.get(name, ThresholdResult(threshold=0.0, head=self._known_head))

    def use(self, found: LabelThresholds | Mapping[str, float] | None) -> None:
        """Replace the thresholds in use, as after loading a checkpoint; None forgets them. Tuning goes on as before.

        Raises `FreezeError` for thresholds of other labels.
        """
        if found is None:
            self._results = {}
            return
        if isinstance(found, ThresholdResult):
            raise FreezeError("There is a threshold for one label, not for several. Was it saved by another run?")
        given = found if isinstance(found, LabelThresholds) else LabelThresholds(found)  # type: ignore[arg-type]
        if self._labels is not None and set(given.by_label) != set(self._labels):
            raise FreezeError(
                f"The thresholds are for the labels {given.labels}, but the model's labels are {list(self._labels)}."
            )
        if given.head == "probability" and self._known_head == "logits":
            raise FreezeError('The thresholds were tuned on probabilities. Say head="probability" here as well.')
        self._results = {name: replace(result, head=self._known_head) for name, result in given.by_label.items()}

    def read_names(self, model: Any) -> None:
        """Take the names of the labels from the model's config. Raises `FreezeError` where they do not fit."""
        names = getattr(getattr(model, "config", None), "id2label", None)
        if not isinstance(names, Mapping) or not names:
            return
        found = [str(names[i]) for i in sorted(names, key=int)]
        if self._given_labels and self._labels is not None and len(found) != len(self._labels):
            raise FreezeError(f"labels={short(list(self._labels))}, but the model has {len(found)} outputs.")
        if not self._given_labels:
            self._labels = _names(found)
        if self._results:
            self.use(LabelThresholds(self._results))

    def comparable(self, outputs: Any) -> Any:
        """Return the logits in one column, which is how `read_margins` reads them."""
        try:
            matrix = take_matrix(outputs)
        except FreezeError:
            return outputs
        return matrix.reshape(-1, 1) if getattr(matrix, "ndim", 0) == 2 else outputs

    def _warn_of_regression(self, config: Any) -> None:
        problem = getattr(config, "problem_type", None)
        if problem not in (None, "multi_label_classification"):
            raise FreezeError(
                f"problem_type={problem!r} does not train one logit per label. Set the config's problem_type to "
                '"multi_label_classification", with labels (n, L) of floats.'
            )

    def _read(self, logits: Any, labels: Any) -> _LabelledRows:
        margin, seen = read_margins(logits, head=self._head)
        margin = as_numpy(margin)  # of a batch it lies on the device
        return _LabelledRows(margin, *read_label_matrix(labels, margin.shape), ranges=(seen,))

    def _join(self, batches: Sequence[_LabelledRows]) -> _LabelledRows:
        return _LabelledRows(
            np.concatenate([batch.margin for batch in batches]),
            np.concatenate([batch.positive for batch in batches]),
            np.concatenate([batch.counted for batch in batches]),
            tuple(seen for batch in batches for seen in batch.ranges),
        )

    def _metrics_of(self, rows: _LabelledRows) -> dict[str, float]:
        refuse_probabilities(rows.ranges, head=self._head)
        names = self._names_of(rows.margin.shape[1])
        judged = {name: self._judge(name, rows, column) for column, name in enumerate(names)}
        self._warn(_grouped({name: label.outcome for name, label in judged.items()}))
        self._warn_of("prevalence", {name: label.far for name, label in judged.items()})
        by_label = {name: label.values for name, label in judged.items()}
        values = _averages(list(by_label.values())) | self._about(rows, judged, names)
        for name, label in by_label.items():
            values |= {f"{name}/{metric}": label[metric] for metric in (*_AVERAGED, "threshold", "n_pos")}
        return values

    def _names_of(self, n_labels: int) -> tuple[str, ...]:
        names = self._labels or tuple(self._results) or tuple(f"LABEL_{i}" for i in range(n_labels))
        if len(names) != n_labels:
            raise FreezeError(f"The logits have {n_labels} columns, but there are {len(names)} labels: {list(names)}.")
        self._labels = names
        return names

    def _judge(self, name: str, rows: _LabelledRows, column: int) -> _Judged:
        counted = rows.counted[:, column]
        margin, positive = rows.margin[counted, column], rows.positive[counted, column]
        n_nan = int(np.isnan(margin).sum())
        sizes = {"n_pos": float(positive.sum()), "n_neg": float((~positive).sum())}
        if n_nan:
            problem = ThresholdError("nonfinite", f"{n_nan} of {len(margin)} scores are NaN.") if self.tunes else None
            return _Judged(self._worst_values(**sizes) | sizes | {"threshold": self._kept(name).threshold}, problem)
        counts = count_scores(np.ascontiguousarray(margin), positive)
        outcome = self._tune(name, counts, len(counted) - len(margin)) if self.tunes else None
        far = None
        if outcome is None and name in self._results:
            far = labels_far_from_tuned(self._results[name], counts, one_label=False)
        threshold = self._kept(name).threshold
        values = metrics_at(threshold, counts) | sizes | {"threshold": threshold}
        values |= {"auroc": counts.auroc(), "average_precision": counts.average_precision()}
        values["f1_at_half"] = metrics_at(0.0, counts)["f1"]
        return _Judged(values | self._objective_values(outcome, values), outcome, far)

    def warn_of_calls(self, logits: Any) -> None:
        """Warn when far more or fewer of these rows, which have no labels, are called positive than was expected."""
        if not self._results:
            return
        margin = as_numpy(read_margins(logits, head=self._head)[0])
        columns = dict(zip(self._names_of(margin.shape[1]), margin.T, strict=True))
        self._warn_of(
            "calls",
            {
                name: calls_far_from_tuned(self._results[name], column, one_label=False)
                for name, column in columns.items()
                if name in self._results
            },
        )

    def _warn_of(self, kind: str, found: Mapping[str, str | None]) -> None:
        if texts := {name: text for name, text in found.items() if text is not None}:
            self._warn({kind: _one_warning(kind, texts, len(found))})

    def _tune(self, name: str, counts: ScoreCounts, n_ignored: int) -> ThresholdResult | ThresholdError:
        try:
            result = self.search.run(counts)
        except ThresholdError as error:
            return error
        result = replace(result, head=self._known_head, n_ignored=n_ignored)
        if result.status != "constant":
            self._results[name] = result
        return result

    def _about(self, rows: _LabelledRows, judged: Mapping[str, _Judged], names: Sequence[str]) -> dict[str, float]:
        limits = np.array([self._kept(name).threshold for name in names], np.float32)
        right = ((rows.margin >= limits) == rows.positive)[rows.counted.all(axis=1)].all(axis=1)
        return {
            "exact_match": float(right.mean()) if len(right) else 0.0,
            "n_rows": float(len(rows.margin)),
            "n_ignored": float((~rows.counted).sum()),
            "n_nonfinite": float(np.isnan(rows.margin[rows.counted]).sum()),
            "n_untuned": float(sum(_untuned(label.outcome) is not None for label in judged.values())),
        }


def _names(labels: Any) -> tuple[str, ...]:
    if not isinstance(labels, list | tuple) or not labels or not all(isinstance(name, str) for name in labels):
        raise FreezeError(f"labels={short(labels)} must be the names of the labels, a list of strings.")
    twice = sorted({name for name in labels if labels.count(name) > 1})
    if twice:
        raise FreezeError(f"Two labels are called {twice[0]!r}. Thresholds go by the labels' names: make them differ.")
    return tuple(labels)


def _averages(labels: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics over all labels: of their confusion counts put together, and the means of their own."""
    tp, fp, fn, tn = (np.array([sum(label[cell] for label in labels)]) for cell in ("tp", "fp", "fn", "tn"))
    values = {f"{name}_micro": float(getattr(metric_values, name)(tp, fp, fn, tn)[0]) for name in _AVERAGED}
    values |= {f"{name}_macro": _mean(labels, name) for name in (*_AVERAGED, "f1_at_half")}
    ranked = [label for label in labels if label["n_pos"] and label["n_neg"]]
    values |= {f"{name}_macro": _mean(ranked, name) for name in ("auroc", "average_precision")}
    values["objective"] = _mean(labels, "objective")
    if "objective_oob" in labels[0]:
        values |= {"objective_oob": _mean(labels, "objective_oob"), "f1_oob_macro": _mean(labels, "f1_oob")}
    return values


def _mean(labels: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([label[name] for label in labels])) if labels else 0.0


def _untuned(outcome: ThresholdResult | ThresholdError | None) -> str | None:
    """Return why tuning did not change a label's threshold; None where it did."""
    if isinstance(outcome, ThresholdError):
        return str(outcome)
    return outcome.message if outcome is not None and outcome.status == "constant" else None


def _grouped(outcomes: Mapping[str, ThresholdResult | ThresholdError | None]) -> dict[str, str]:
    """Return one warning for all labels that were not tuned, and one for each kind of doubt about the others."""
    kinds: dict[str, dict[str, str]] = {}
    for name, outcome in outcomes.items():
        if (why := _untuned(outcome)) is not None:
            kinds.setdefault("untuned", {})[name] = why
        elif isinstance(outcome, ThresholdResult):
            for kind, why in reasons_to_doubt(outcome).items():
                kinds.setdefault(kind, {})[name] = why
    return {kind: _one_warning(kind, labels, len(outcomes)) for kind, labels in kinds.items()}


def _one_warning(kind: str, labels: Mapping[str, str], n_labels: int) -> str:
    names = ", ".join(repr(name) for name in list(labels)[:8]) + (
        f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    )
    first, why = next(iter(labels.items()))
    found = _OF_LABELS.get(kind, "have thresholds to doubt")
    return f"{len(labels)} of {n_labels} labels {found}: {names}. Of {first!r}: {why}"
