"""A linear probe on the features of every depth, cross-validated with scikit-learn over the same folds."""

import difflib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.layers.suggestion import DepthScore

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_SHRINKAGE = 0.1  # LogisticRegression's C, on standardised features: there are often as many of them as rows
_ROWS_PER_CLASS = 4

Scoring = str | Callable[..., float]


def refuse_unknown_scoring(scoring: Scoring | None) -> None:
    """Raise `FreezeError` for a name that scikit-learn has no scorer of."""
    # scikit-learn takes half a second to import, and nothing else here needs it.
    from sklearn.metrics import get_scorer_names  # noqa: PLC0415

    if scoring is None or callable(scoring) or scoring in get_scorer_names():
        return
    near = difflib.get_close_matches(str(scoring), get_scorer_names(), n=3, cutoff=0.5)
    raise FreezeError(
        f"scoring={scoring!r} is not one of scikit-learn's scorers. Nearest: {near or ['accuracy', 'f1_macro']}."
    )


def refuse_scoring_of_other_classes(scoring: Scoring, classes: int) -> None:
    """Raise `FreezeError` for a scorer that gives no number for so many classes; it is tried on random features."""
    from sklearn.metrics import get_scorer_names  # noqa: PLC0415

    if callable(scoring) or _fits(scoring, classes):
        return
    kin = [name for name in get_scorer_names() if name.startswith(f"{scoring}_")]
    fitting = [name for name in dict.fromkeys([*kin, "accuracy", "f1_macro"]) if _fits(name, classes)]
    raise FreezeError(f"scoring={scoring!r} gives no number for {classes} classes. These do: {fitting}.")


def _fits(scoring: str, classes: int) -> bool:
    from sklearn.metrics import get_scorer  # noqa: PLC0415

    labels = np.tile(np.arange(classes), _ROWS_PER_CLASS)
    values = np.random.default_rng(0).normal(size=(len(labels), 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(np.isfinite(get_scorer(scoring)(_probe().fit(values, labels), values, labels)))
        except (ValueError, TypeError, AttributeError):
            return False


def probe_scores(
    values: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], *, folds: int, scoring: Scoring, seed: int
) -> tuple[DepthScore, ...]:
    """Cross-validate a probe at every depth. Raises `FreezeError` where a score is not a number."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # noqa: PLC0415

    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores = tuple(
        DepthScore(
            depth=depth,
            folds=tuple(
                map(float, cross_val_score(_probe(), features, labels, cv=splits, scoring=scoring, error_score="raise"))
            ),
        )
        for depth, features in enumerate(values)
    )
    for score in scores:
        if not np.isfinite(score.folds).all():
            raise FreezeError(
                f"scoring={scoring!r} gave {list(score.folds)} at depth {score.depth}, which are not numbers."
            )
    return scores


def _probe() -> "Pipeline":
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    return make_pipeline(StandardScaler(), LogisticRegression(C=_SHRINKAGE, max_iter=1000))
