"""Smoothed confusion counts: what fresh rows like these would count, where few positives leave gaps between them.

An exact search over 5 to 50 positives fits the places where they happened to fall. Here each class's share above a
threshold is a kernel estimate of its distribution (Nadaraya, 1964) with Azzalini's bandwidth, 1.3 sigma n^(-1/3)
(Biometrika, 1981), sigma being the smaller of standard deviation and interquartile range / 1.349. The bandwidth of a
large class is small, so that with many rows this is the exact search.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from hf_freeze.binary.counts import FloatArray, ScoreCounts, Table

_BANDWIDTH = 1.3
_FEWEST_TO_SPREAD = 3  # rows that tell the spread of their class; below, it is taken from the other class


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Which part of the rows between two neighbouring candidates counts at each, (candidates, candidates - 1)."""

    of_positives: FloatArray
    of_negatives: FloatArray

    @classmethod
    def at(cls, counts: ScoreCounts, kept: NDArray[np.intp]) -> "Smoothing":
        """Return the smoothing at the thresholds of the candidates `kept`, the first and the last among them."""
        low, high = counts.gaps(kept, kept)
        thresholds = (low + high) / 2.0
        # The rows from one candidate to the next lie between their lowest scores: few positives each have their own.
        places = counts.scores[kept[:-1]].astype(np.float64)
        masses = [-np.diff(count[kept]) for count in (counts.tp, counts.fp)]
        spreads = [_spread(places, mass) for mass in masses]
        kernels = []
        for n_rows, sigma, other in zip((counts.rows.tp[0], counts.rows.fp[0]), spreads, spreads[::-1], strict=True):
            own = sigma if n_rows >= _FEWEST_TO_SPREAD and sigma > 0.0 else other
            bandwidth = max(_BANDWIDTH * own * float(n_rows) ** (-1.0 / 3.0), 1e-300)
            with np.errstate(over="ignore", invalid="ignore"):
                kernels.append(np.nan_to_num(ndtr((places - thresholds[:, None]) / bandwidth), nan=0.5))
        return cls(*kernels)

    def table(self, tp: FloatArray, fp: FloatArray) -> Table:
        """Return the smoothed counts from those at the candidates, along the first axis."""
        smooth_tp = self.of_positives @ (tp[:-1] - tp[1:])
        smooth_fp = self.of_negatives @ (fp[:-1] - fp[1:])
        return Table(smooth_tp, smooth_fp, tp[0] - smooth_tp, fp[0] - smooth_fp)


def _spread(places: FloatArray, mass: FloatArray) -> float:
    """Return sigma of the rows at finite places."""
    counted = np.isfinite(places) & (mass > 0.0)
    places, mass = places[counted], mass[counted]
    if not len(places):
        return 0.0
    mean = np.average(places, weights=mass)
    deviation = float(np.sqrt(np.average((places - mean) ** 2, weights=mass)))
    up_to = np.cumsum(mass) / mass.sum()
    lower, upper = places[np.searchsorted(up_to, [0.25, 0.75]).clip(0, len(places) - 1)]
    quartiles = float(upper - lower) / 1.349
    return min(deviation, quartiles) if quartiles > 0.0 else deviation
