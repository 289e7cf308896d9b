"""What a suggestion is; and the depth of a model whose features suffice: scores, rule, and the plan that follows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.tables import as_table


@dataclass(frozen=True, kw_only=True)
class DepthScore:
    """A linear probe on the features at one depth: 0 is what goes into the first layer, k what layer k - 1 returns."""

    depth: int
    folds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the folds."""
        return fmean(self.folds)

    @property
    def error(self) -> float:
        """The standard error of that mean."""
        return float(stdev(self.folds) / len(self.folds) ** 0.5)


def depth_that_suffices(scores: Sequence[DepthScore]) -> int:
    """Return the smallest depth whose score is within one standard error of the best (Breiman et al., 1984).

    >>> a, b, c = (DepthScore(depth=i, folds=(x - 0.02, x + 0.02)) for i, x in enumerate((0.6, 0.89, 0.9)))
    >>> depth_that_suffices([a, b, c])
    1
    """
    best = max(scores, key=lambda score: score.mean)
    return min(score.depth for score in scores if score.mean >= best.mean - best.error)


class LayerSuggestion(ABC):
    """What `suggest_layers` returns: `str()` is a table, `plan` trains what it found, `plot_layers` draws it."""

    @property
    @abstractmethod
    def plan(self) -> FreezePlan:
        """The plan that follows."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class ProbeSuggestion(LayerSuggestion):
    """The score of a linear probe at every depth, and the plan that follows. `str()` is a table with what it cost.

    Depth 0 is in front of the first layer, depth i behind `layers[i - 1]`. `depth` is the smallest that suffices: its
    score is within one standard error of the best. `plan` freezes what lies below it and trains the layers above and
    whatever is neither layer nor embedding (head, pooler, final norm).

    Attributes:
        scores: One `DepthScore` per depth, with the score of each fold.
        layers: How many layers the model has.
        scoring: The name of the score, one of scikit-learn's scorers.
        reads: What the probes saw at each depth: the mean over real tokens, and the token that the head reads, if one.
        rows: How many rows were probed.
        extraction_seconds: Time of the one pass through the model.
        probe_seconds: Time of all probes.
        has_embeddings: Whether the model has embeddings, which the plan then freezes.
        prefix: The path of the stack in front of `layers[...]`, such as "encoder."; "" where the model has one stack.
        below: Paths of the stacks in front of that one, which the plan freezes as a whole.
    """

    scores: tuple[DepthScore, ...]
    layers: int
    scoring: str
    reads: tuple[str, ...]
    rows: int
    extraction_seconds: float
    probe_seconds: float
    has_embeddings: bool = True
    prefix: str = ""
    below: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """The smallest depth whose features suffice."""
        return depth_that_suffices(self.scores)

    @property
    def best(self) -> DepthScore:
        """The depth with the highest score."""
        return max(self.scores, key=lambda score: score.mean)

    @property
    def plan(self) -> FreezePlan:
        """The plan that keeps what gives these features, and trains the rest."""
        frozen = ["embeddings"] if self.has_embeddings else []
        if self.depth:
            frozen += [*(f"{path}.layers[:]" for path in self.below), f"{self.prefix}layers[:{self.depth}]"]
        return FreezePlan(freeze=frozen) if frozen else FreezePlan(trainable="all")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        scores = [{"depth": one.depth, "mean": one.mean, "error": one.error} for one in self.scores]
        return {
            "scores": scores,
            "scoring": self.scoring,
            "depth": self.depth,
            "best": self.best.depth,
            "plan": self.plan.to_dict(),
            "rows": self.rows,
            "seconds": {"extraction": self.extraction_seconds, "probes": self.probe_seconds},
        }

    def __str__(self) -> str:
        rows = [("depth", "features", self.scoring, "std. error", "")]
        for score in self.scores:
            marks = ["best"] if score is self.best else []
            marks += ["suffices"] if score.depth == self.depth else []
            name = f"after {self.prefix}layers[{score.depth - 1}]" if score.depth else "before the layers"
            rows.append((str(score.depth), name, f"{score.mean:.4f}", f"{score.error:.4f}", ", ".join(marks)))
        read = " and ".join(f"{how} token" if how != "mean" else how for how in self.reads)
        return "\n".join(
            [
                as_table(rows),
                "",
                f"Depth {self.depth} of {self.layers} is within one standard error of the best: keep what lies below "
                "frozen, train what lies above.",
                f"Plan: {self.plan.to_dict()}",
                f"{self.rows:,} rows; linear probes on the {read}. Cost: {self.extraction_seconds:.1f} s for one pass "
                f"through the model, {self.probe_seconds:.1f} s for {len(self.scores)} probes in "
                f"{len(self.scores[0].folds)} folds.",
            ]
        )
