"""Tune a threshold: an exact search over every distinct score, under constraints, with the optimism of the choice.

Rules: the score is the float32 margin; a row is positive if and only if its margin is at least the threshold; the
threshold lies strictly above the next lower score; among equally good thresholds, the middle of the longest plateau.
"""

import numbers
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.calibration import Calibrate, Calibration, calibrated, check_calibrate
from hf_freeze.binary.counts import FloatArray, ScoreCounts, count_scores
from hf_freeze.binary.criterion import Criterion
from hf_freeze.binary.labelled_rows import read_rows
from hf_freeze.binary.margin import Head, refuse_probabilities
from hf_freeze.binary.metric_values import MetricOfCounts
from hf_freeze.binary.prevalence import log_odds_shift
from hf_freeze.binary.resampling import Resamples, resample
from hf_freeze.binary.result import (
    ThresholdCurve,
    ThresholdResult,
    ThresholdWarning,
    is_number,
    reasons_to_doubt,
    short,
    status_of,
)
from hf_freeze.binary.risk_control import RiskControl, refuse_row_weights
from hf_freeze.binary.smoothing import Smoothing
from hf_freeze.errors import FreezeError

Select: TypeAlias = Literal["exact", "bagged", "smoothed"]

RESOLUTION = 256
"""The curve and the re-tunings look at about this many candidates: more changed neither optimism nor interval."""

_BLOCK = 1 << 15  # candidates
_MOST_RETUNINGS = 100_000


class ThresholdError(FreezeError):
    """No threshold can be tuned on these rows.

    Args:
        status: Why, in one word: "empty", "single_class", "nonfinite", "infeasible" or "infeasible_at_confidence".
        message: The same in a sentence.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


def tune_threshold(  # noqa: PLR0913 - one declaration of a search; all but two are keywords
    scores: Any,
    labels: Any,
    *,
    objective: str | MetricOfCounts = "f1",
    beta: float = 1.0,
    costs: Mapping[str, float] | None = None,
    min_precision: float | None = None,
    min_recall: float | None = None,
    max_fpr: float | None = None,
    confidence: float | None = None,
    at_prevalence: float | None = None,
    sample_weight: Any = None,
    calibrate: Calibrate | None = None,
    select: Select = "exact",
    n_boot: int = 200,
    seed: int = 0,
    head: Head = "auto",
) -> ThresholdResult:
    """Find the threshold that maximises an objective under constraints, exactly, and estimate its value on fresh rows.

    Every distinct score is a candidate. The estimate comes from re-tuning on random halves of the rows (see
    `resampling.py` for the sources). The cost is one sort and a few passes over the rows.

    Args:
        scores: Margins (n,), or logits in any form that `binary_margin` reads.
        labels: 0/1, bool, or one-hot (n, 2); rows labelled -100 are left out.
        objective: What to maximise: "f1", "fbeta", "mcc", "balanced_accuracy", "youden", "accuracy", "cost";
            "precision" or "recall" with a constraint; or a function of the arrays (tp, fp, fn, tn).
        beta: For "fbeta": recall weighs beta times as much as precision.
        costs: For "cost": `{"fp": ..., "fn": ...}`. The value is minus the mean cost per row.
        min_precision: Limit in [0, 1] that the threshold must keep, as are the next two.
        min_recall: The same, for recall.
        max_fpr: The same, for the share of negative rows that are called positive.
        confidence: The limits must hold on fresh rows with this probability, such as 0.95, although the threshold was
            chosen by looking at these ones (learn then test: see `risk_control.py` for method and sources). Not
            together with `sample_weight`.
        at_prevalence: The share of positives where the model will run, in (0, 1). Threshold, value, intervals and
            probabilities are those to expect there: the rows of each class are weighted to make up this share. The
            scores of a class are taken to be distributed there as they are here.
        sample_weight: One weight per row, 0 or more, where rows do not stand for equally many: inverse sampling
            probabilities. Of rows of weight 0 nothing is read. Not for rows that were counted several times over:
            intervals and bounds hold for as many rows as there are, and fewer if their weights differ.
        calibrate: "temperature" or "platt" fits probabilities to these rows, for `predict_binary` and the pipeline (see
            `calibration.py`). Margins, labels and the threshold stay as they are.
        select: "exact" takes the best threshold; "bagged" the median of the re-tuned ones; "smoothed" the best by
            counts that are smoothed over the scores (see `smoothing.py`). Few positives lose less on fresh rows by
            the second, and least by the third.
        n_boot: Number of re-tunings. 0 skips them: no out-of-bag value and no intervals.
        seed: Of the random halves.
        head: How `scores` are read, as in `binary_margin`.

    Returns:
        The threshold, in logit units, with its value, intervals and counts.

    Raises:
        ThresholdError: Without rows, with one class only, for NaN scores, and when no threshold keeps the limits.
        FreezeError: For scores or labels that cannot be read, and settings that contradict each other.

    Warns (`ThresholdWarning`) when there is a reason to doubt the result.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.random(2000) < 0.1
    >>> result = tune_threshold(rng.normal(2.0 * labels), labels)
    >>> round(result.threshold, 2), round(result.value, 2), round(result.oob_value, 2)
    (1.7, 0.59, 0.58)
    """
    criterion = Criterion(
        objective=objective,
        beta=beta,
        costs=costs,
        min_precision=min_precision,
        min_recall=min_recall,
        max_fpr=max_fpr,
        confidence=confidence,
    )
    search = ThresholdSearch(
        criterion=criterion, at_prevalence=at_prevalence, calibrate=calibrate, select=select, n_boot=n_boot, seed=seed
    )
    rows = read_rows(scores, labels, sample_weight, head=head)
    refuse_probabilities(rows.ranges, head=head)
    if rows.n_nan:
        raise ThresholdError("nonfinite", f"{rows.n_nan} of {len(rows.margin)} scores are NaN. Did training diverge?")
    result = replace(
        search.run(count_scores(rows.margin, rows.positive, rows.weight)),
        n_ignored=rows.n_ignored,
        head="probability" if head == "probability" else "logits",
    )
    for text in reasons_to_doubt(result).values():
        warnings.warn(text, ThresholdWarning, stacklevel=2)
    return result


@dataclass(frozen=True, kw_only=True)
class ThresholdSearch:
    """The settings of a search, checked once; `run` searches. The arguments are those of `tune_threshold`."""

    criterion: Criterion
    at_prevalence: float | None = None
    calibrate: Calibrate | None = None
    select: Select = "exact"
    n_boot: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `FreezeError` for settings that cannot be run."""
        if not (isinstance(self.select, str) and self.select in ("exact", "bagged", "smoothed")):
            raise FreezeError(f'Unknown select={short(self.select)}. Give "exact", "bagged" or "smoothed".')
        check_calibrate(self.calibrate)
        if self.at_prevalence is not None and not (is_number(self.at_prevalence) and 0.0 < self.at_prevalence < 1.0):
            raise FreezeError(
                f"at_prevalence={short(self.at_prevalence)} must be a share of positive rows between 0 and 1, such as "
                "0.01 for 1 %."
            )
        for name, given in (("n_boot", self.n_boot), ("seed", self.seed)):
            if not isinstance(given, numbers.Integral) or isinstance(given, bool):
                raise FreezeError(f"{name}={short(given)} must be a whole number.")
            if given < 0:
                raise FreezeError(f"{name}={short(given)} is negative. Give 0 or more.")
        if self.n_boot > _MOST_RETUNINGS:
            raise FreezeError(f"n_boot={self.n_boot} is more than {_MOST_RETUNINGS} re-tunings. n_boot=200 is enough.")
        if self.select == "bagged" and self.n_boot == 0:
            raise FreezeError('select="bagged" takes the median of n_boot re-tunings, but n_boot=0. Give n_boot=200.')

    def run(self, counts: ScoreCounts) -> ThresholdResult:
        """Tune on counted rows. Raises `ThresholdError` when a class is missing or no threshold is acceptable."""
        _require_both_classes(counts)
        if counts.weighted_rows is not None:
            refuse_row_weights(self.criterion)
        shift = 0.0
        if self.at_prevalence is not None:
            prevalence = float(self.at_prevalence)
            shift = log_odds_shift(prevalence, float(counts.rows.tp[0]) / _n_rows(counts))
            counts = counts.at_prevalence(prevalence)
        control = None if self.criterion.confidence is None else RiskControl.of(counts, self.criterion)
        value = _acceptable_values(counts, self.criterion, control)
        first, last = _longest_plateau(counts, value)
        kept = counts.thinned(RESOLUTION, keep=first)
        tried = kept if control is None else np.union1d(kept, control.tested)
        smoothing = Smoothing.at(counts, tried) if self.select == "smoothed" else None
        if smoothing is not None:
            first = last = self._best_smoothed(counts, value, tried, smoothing)
        resamples = None
        if self.n_boot:
            settings: Any = {"control": control, "smoothing": smoothing, "n_boot": self.n_boot, "seed": self.seed}
            resamples = resample(counts, self.criterion, kept=tried, tuned=first, **settings)
            if self.select == "bagged" and len(resamples.thresholds):
                first = last = _acceptable_near(counts, value, float(np.median(resamples.thresholds)))
        low, high = (float(end) for end in counts.gaps(first, last))
        result = self._describe(counts, value, low=low, high=high)
        result = replace(result, curve=_curve(counts, self.criterion, kept), intercept=shift, status=status_of(result))
        if resamples is not None:
            result = _with_optimism(result, self.criterion, resamples)
        if self.calibrate is not None:
            result = _with_calibration(result, calibrated(counts, self.calibrate, shift=shift, seed=self.seed))
        return replace(result, message=" ".join(reasons_to_doubt(result).values()))

    def _best_smoothed(
        self, counts: ScoreCounts, value: FloatArray, tried: NDArray[np.intp], smoothing: Smoothing
    ) -> int:
        """Return the acceptable candidate, of those `tried`, that is best by smoothed counts."""
        smooth = self.criterion.value(*smoothing.table(counts.tp[tried], counts.fp[tried]))
        return int(tried[np.where(value[tried] > -np.inf, smooth, -np.inf).argmax()])

    def _describe(self, counts: ScoreCounts, value: FloatArray, *, low: float, high: float) -> ThresholdResult:
        threshold = _middle(low, high)
        candidate = counts.candidate_at(threshold)
        tp, fp, fn, tn = (int(count) for count in counts.rows.table(candidate))
        weighted = None
        if counts.weighted_rows is not None:
            w = counts.table(candidate)
            weighted = float(w.tp), float(w.fp), float(w.fn), float(w.tn)
        return ThresholdResult(
            threshold=threshold,
            objective=self.criterion.name,
            constraints=self.criterion.constraints,
            value=float(value[candidate]),
            plateau=(low, high),
            tp=tp,
            fp=fp,
            fn=fn,
            tn=tn,
            weighted_counts=weighted,
            prevalence=counts.n_pos / (counts.n_pos + counts.n_neg),
            auroc=counts.auroc(),
            n_distinct=len(counts.scores),
        )


def _require_both_classes(counts: ScoreCounts) -> None:
    n_pos, n_neg = int(counts.rows.tp[0]), int(counts.rows.fp[0])
    if n_pos + n_neg == 0:
        raise ThresholdError("empty", "There are no labelled rows to tune a threshold on.")
    if n_pos == 0 or n_neg == 0:
        only, missing = ("negative", "positive") if n_pos == 0 else ("positive", "negative")
        raise ThresholdError(
            "single_class",
            f"All {n_pos + n_neg} rows are {only}: without a {missing} row, no threshold is better than another. "
            "Stratify the split, or check which label is the positive one.",
        )


def _acceptable_values(counts: ScoreCounts, criterion: Criterion, control: RiskControl | None) -> FloatArray:
    """Return the objective at every candidate: minus infinity where a constraint fails or the threshold is infinite.

    Works in blocks that fit the processor's cache, because the objective makes many passes over its arrays.
    """
    value = np.empty(len(counts.tp))
    for start in range(0, len(value), _BLOCK):
        block = slice(start, start + _BLOCK)
        table = counts.table(block)
        value[block] = criterion.value(*table)
        if criterion.constraints and control is None:
            value[block][~criterion.feasible(*table)] = -np.inf
    if control is not None:
        value[~control.passed(counts.table(slice(None)))] = -np.inf
    value[~counts.reachable()] = -np.inf
    if not (value > -np.inf).any():
        raise _no_threshold(counts, criterion, control)
    return value


def _n_rows(counts: ScoreCounts) -> int:
    return int(counts.rows.tp[0] + counts.rows.fp[0])


def _no_threshold(counts: ScoreCounts, criterion: Criterion, control: RiskControl | None) -> FreezeError:
    """Return the error that says, for each constraint, how close a threshold can come to it."""
    reachable, table = counts.reachable(), counts.table(slice(None))
    observed_rates_do = bool((reachable & criterion.feasible(*table)).any())
    if observed_rates_do and (control is None or (reachable & control.passed(table)).any()):
        return FreezeError(f"objective {criterion.name!r} is not finite at any threshold that keeps the constraints.")
    wanted, best = [], []
    for name, rate in criterion.reached(*table).items():
        extreme = rate[reachable].min() if name == "max_fpr" else rate[reachable].max()
        wanted.append(f"{name}={criterion.constraints[name]:g}")
        best.append(f"{extreme:.4g} for {name}")
    status, where, advice = "infeasible", "", "Relax a constraint, or train a better model."
    if observed_rates_do and control is not None:
        status, where = "infeasible_at_confidence", f" with confidence {criterion.confidence:g}"
        advice = f"{control.how_to_show_more()} Tune on more rows, or lower the confidence."
    return ThresholdError(
        status,
        f"No threshold keeps {' and '.join(wanted)}{where} on these {_n_rows(counts)} rows. "
        f"The best that each can reach alone: {', '.join(best)}. {advice}",
    )


def _longest_plateau(counts: ScoreCounts, value: FloatArray) -> tuple[int, int]:
    """Return the first and last candidate of the widest interval of margins with the best value."""
    best = value.max()
    # Sums in another order differ in the last digits; a tie must not hang on them.
    good = np.flatnonzero(value >= best - 1e-12 * abs(best))
    breaks = np.flatnonzero(np.diff(good) > 1)
    first = good[np.concatenate([[0], breaks + 1])]
    last = good[np.concatenate([breaks, [len(good) - 1]])]
    low, high = counts.gaps(first, last)
    longest = int((high - low).argmax())
    return int(first[longest]), int(last[longest])


def _acceptable_near(counts: ScoreCounts, value: FloatArray, threshold: float) -> int:
    """Return the acceptable candidate that is the fewest candidates away from a threshold."""
    acceptable = np.flatnonzero(value > -np.inf)
    return int(acceptable[np.abs(acceptable - counts.candidate_at(threshold)).argmin()])


def _middle(low: float, high: float) -> float:
    """Return a float32 in (low, high], as near to the middle as there is one."""
    middle = np.float32((low + high) / 2.0)
    return float(middle if middle > np.float32(low) else np.float32(high))


def _curve(counts: ScoreCounts, criterion: Criterion, kept: NDArray[np.intp]) -> ThresholdCurve:
    table = counts.table(kept)
    value = np.nan_to_num(criterion.value(*table), neginf=criterion.worst(counts.n_pos, counts.n_neg))
    return ThresholdCurve(
        threshold=tuple(counts.gaps(kept, kept)[1].tolist()),
        tp=tuple(_whole(table.tp, counts).tolist()),
        fp=tuple(_whole(table.fp, counts).tolist()),
        value=tuple(value.tolist()),
    )


def _with_calibration(result: ThresholdResult, found: Calibration) -> ThresholdResult:
    return replace(
        result,
        slope=found.slope,
        intercept=found.intercept,
        calibrated=found.method,
        calibration=found.errors,
        calibration_doubt=found.doubt or "",
    )


def _whole(count: FloatArray, counts: ScoreCounts) -> NDArray[Any]:
    return count.astype(int) if counts.weighted_rows is None else count


def _with_optimism(result: ThresholdResult, criterion: Criterion, resamples: Resamples) -> ThresholdResult:
    """Add the out-of-bag value, and the interval of resampled values moved down by the optimism (Noma et al., 2021)."""
    if result.value is None or resamples.oob_counts is None:
        return result
    oob_value = criterion.value_of(resamples.oob_counts)
    if not (np.isfinite(oob_value) and np.isfinite(resamples.values).all()):
        return result  # a function of the user's that is not finite everywhere
    spread = np.percentile(resamples.values, [2.5, 97.5]) - (result.value - oob_value)
    low, high = (float(end) for end in spread.clip(*criterion.bounds))
    thresholds = np.percentile(resamples.thresholds, [2.5, 97.5])
    return replace(
        result,
        oob_value=oob_value,
        oob_counts=resamples.oob_counts,
        interval=(low, high),
        threshold_interval=(float(thresholds[0]), float(thresholds[1])),
    )
