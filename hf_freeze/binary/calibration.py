"""Fit probabilities to labels: the log-odds of a row become slope * margin + intercept, with a slope above 0.

Such a map keeps the order of the margins, so every row keeps its label. "temperature" divides the margin by a number
(Guo et al., 2017); "platt" adds an intercept, and fits to the smoothed targets of Platt (1999), which keep it finite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from hf_freeze.binary.counts import FloatArray, ScoreCounts
from hf_freeze.binary.metric_values import probability_errors
from hf_freeze.binary.resampling import halves
from hf_freeze.binary.result import short, sigmoid
from hf_freeze.errors import FreezeError

Calibrate: TypeAlias = Literal["temperature", "platt"]

_ROWS_TO_JUDGE = 50_000
_WITHOUT_SLOPE = {
    "platt": "higher scores do not go with more positives",
    "temperature": 'margins above 0 do not go with more positives than margins below ("platt" can move that point)',
}
_FLATTEST = 1e-6  # slope of scores of unit size: probabilities that no longer depend on the score


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Log-odds are slope * margin + intercept. `errors`: Brier score and calibration error, by name.

    `method` is None where nothing could be fitted; `doubt` says why, or that a fallback was used.
    """

    method: Calibrate | None
    slope: float
    intercept: float
    errors: dict[str, float]
    doubt: str | None = None


def check_calibrate(calibrate: Any) -> None:
    """Raise `FreezeError` unless this is None or a way to calibrate."""
    if calibrate is not None and not (isinstance(calibrate, str) and calibrate in ("temperature", "platt")):
        raise FreezeError(f'Unknown calibrate={short(calibrate)}. Give "temperature" or "platt".')


def calibrated(counts: ScoreCounts, method: Calibrate, *, shift: float, seed: int) -> Calibration:
    """Fit probabilities to counted rows, and judge them on rows that were left out of the fit.

    Args:
        counts: The rows, weighted to the prevalence that the probabilities are meant for.
        method: "temperature" or "platt".
        shift: Log-odds of that prevalence less those of the rows; the intercept of a temperature.
        seed: Of the halves that are judged.

    The errors called "..._uncalibrated" are those of the model's own probability; the others are out of bag: of each
    half of the rows by what was fitted to the other half.
    """
    pos, neg = _weight_of_scores(counts.tp, counts.fp)
    before = probability_errors(sigmoid(counts.scores.astype(np.float64)), pos, neg)
    errors = {f"{name}_uncalibrated": value for name, value in before.items()}
    n_rows = (float(counts.rows.tp[0]), float(counts.rows.fp[0]))
    fitted = _fit(counts.scores, pos, neg, n_rows=n_rows, method=method, shift=shift)
    if fitted is None:
        return Calibration(
            method=None,
            slope=1.0,
            intercept=shift,
            errors={**errors, **_served_errors(counts, 1.0, shift)},
            doubt=f"calibrate={method!r} was left out: {_WITHOUT_SLOPE[method]}, and no slope above 0 fits. "
            "Probabilities stay the model's own.",
        )
    errors |= _out_of_bag(counts, method=method, shift=shift, seed=seed) or _served_errors(counts, *fitted)
    doubt = None
    if method == "temperature" and _separated(counts.scores, pos, neg):
        doubt = (
            "calibrate='temperature': margin 0 separates all rows, and no temperature is small enough. The smoothed "
            "targets of Platt (1999) were fitted instead. Calibrate on rows that were not trained on."
        )
    return Calibration(method=method, slope=fitted[0], intercept=fitted[1], errors=errors, doubt=doubt)


def _fit(
    scores: NDArray[np.float32],
    pos: FloatArray,
    neg: FloatArray,
    *,
    n_rows: tuple[float, float],
    method: Calibrate,
    shift: float,
) -> tuple[float, float] | None:
    """Return slope and intercept; None where a class has no finite score, or the slope would not be above 0."""
    kept = np.isfinite(scores) & (pos + neg > 0)
    margin, pos, neg = scores[kept].astype(np.float64), pos[kept], neg[kept]
    size = float(np.abs(margin).max(initial=0.0))
    if not pos.sum() or not neg.sum() or len(margin) < 2 or not size:
        return None
    if method == "platt" or _separated(margin, pos, neg):
        of_pos, of_neg = (n_rows[0] + 1) / (n_rows[0] + 2), 1 / (n_rows[1] + 2)
        pos, neg = pos * of_pos + neg * of_neg, pos * (1 - of_pos) + neg * (1 - of_neg)
    loss = _log_loss(margin / size, pos / (pos + neg).sum(), neg / (pos + neg).sum())
    free = slice(None) if method == "platt" else slice(1)

    def of_free(given: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = loss(given[0], given[1] if method == "platt" else shift)
        return value, gradient[free]

    start = np.array([1.0, shift])[free]
    bounds = [(0.0, None), (None, None)][free]
    options = {"ftol": 1e-14, "gtol": 1e-10, "maxiter": 500}
    found = minimize(of_free, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return (float(found[0]) / size, float(found[-1]) if method == "platt" else shift) if found[0] > _FLATTEST else None


def _log_loss(x: FloatArray, pos: FloatArray, neg: FloatArray) -> Callable[[float, float], tuple[float, FloatArray]]:
    def loss(slope: float, intercept: float) -> tuple[float, FloatArray]:
        z = slope * x + intercept
        value = float(np.dot(pos, np.logaddexp(0.0, -z)) + np.dot(neg, np.logaddexp(0.0, z)))
        residual = (pos + neg) * sigmoid(z) - pos
        return value, np.array([np.dot(residual, x), residual.sum()])

    return loss


def _separated(scores: NDArray[Any], pos: FloatArray, neg: FloatArray) -> bool:
    """Return whether margin 0 separates the classes, so that a smaller temperature always fits better."""
    return bool(scores[pos > 0].min(initial=np.inf) >= 0.0 >= scores[neg > 0].max(initial=-np.inf))


def _out_of_bag(counts: ScoreCounts, *, method: Calibrate, shift: float, seed: int) -> dict[str, float]:
    """Return the mean errors on rows left out; {} where no half could be fitted."""
    n_draws = int(np.clip(_ROWS_TO_JUDGE // len(counts.tp), 1, 5))
    everywhere = np.arange(len(counts.tp))
    squares = counts.table_of_squares(everywhere) or counts.table(everywhere)
    rng = np.random.default_rng(seed)
    in_tp, out_tp = halves(counts.tp, squares.tp, rng, 2 * n_draws)
    in_fp, out_fp = halves(counts.fp, squares.fp, rng, 2 * n_draws)
    n_rows = (float(counts.rows.tp[0]) / 2, float(counts.rows.fp[0]) / 2)
    found: list[dict[str, float]] = []
    for bag, left_out in zip(zip(in_tp.T, in_fp.T, strict=True), zip(out_tp.T, out_fp.T, strict=True), strict=True):
        fitted = _fit(counts.scores, *_weight_of_scores(*bag), n_rows=n_rows, method=method, shift=shift)
        if fitted is not None and left_out[0][0] + left_out[1][0] > 0:
            probability = sigmoid(fitted[0] * counts.scores.astype(np.float64) + fitted[1])
            found.append(probability_errors(probability, *_weight_of_scores(*left_out)))
    return {name: float(np.mean([errors[name] for errors in found])) for name in (found[0] if found else ())}


def _served_errors(counts: ScoreCounts, slope: float, intercept: float) -> dict[str, float]:
    probability = sigmoid(slope * counts.scores.astype(np.float64) + intercept)
    return probability_errors(probability, *_weight_of_scores(counts.tp, counts.fp))


def _weight_of_scores(tp: FloatArray, fp: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the weight of the rows of either class at each score, from what passes each candidate."""
    return (tp[:-1] - tp[1:]).clip(0.0), (fp[:-1] - fp[1:]).clip(0.0)
