"""Whether computing features once is worth it: pure arithmetic over measured seconds."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One data set in one stage: `passes` over its `rows`, each `row_seconds`, or `cached_row_seconds` with features.

    >>> estimate = Estimate(rows=1000, passes=5, row_seconds=0.007, cached_row_seconds=0.0005, size=1_536_000)
    >>> saves_time([estimate]), round(estimate.saved_seconds)
    (True, 32)
    """

    rows: int
    passes: float
    row_seconds: float
    cached_row_seconds: float
    size: int
    stored: bool = False

    @property
    def saved_seconds(self) -> float:
        """Seconds that the passes save."""
        return self.rows * self.passes * max(self.row_seconds - self.cached_row_seconds, 0.0)

    @property
    def extraction_seconds(self) -> float:
        """Seconds that computing the features takes; none where they are stored already."""
        return 0.0 if self.stored else self.rows * self.row_seconds

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.passes:.2g} passes, {in_bytes(self.size)}; {1000 * self.row_seconds:.3g} ms a "
            f"row without, {1000 * self.cached_row_seconds:.3g} with features; saves {self.saved_seconds:.3g} s for "
            f"{self.extraction_seconds:.3g} s of extraction"
        )


def saves_time(estimates: Sequence[Estimate]) -> bool:
    """Whether stages together, served by one extraction pass, take less time with features than without."""
    saved = sum(estimate.saved_seconds for estimate in estimates)
    return saved > max((estimate.extraction_seconds for estimate in estimates), default=0.0)


def in_bytes(count: float) -> str:
    """Write a number of bytes for people.

    >>> in_bytes(28_740_000)
    '28.7 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
