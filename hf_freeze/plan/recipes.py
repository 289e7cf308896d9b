"""Named plans: the ways of fine-tuning that have a name in the literature."""

import difflib
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.stages import BottomUp, Rotate, Settled, Stage, TopDown
from hf_freeze.selection.language import Selection

HEAD_FACTOR = 10.0
"""How many times faster a new head learns than pretrained weights."""


def linear_probe() -> FreezePlan:
    """Train the head alone, on features that stay as they are (Alain and Bengio, 2016).

    >>> linear_probe().to_dict()
    {'trainable': 'head'}
    """
    return FreezePlan(trainable="head")


def last_layers(k: int = 1) -> FreezePlan:
    """Train the last `k` layers and all that lies above them: pooler, final norm, last convolution, head.

    `gradual` begins the same way. What makes the layers' input (embeddings, stem) and the layers below stay frozen.

    Args:
        k: How many layers train, counted from the top.

    Raises:
        PlanError: Where `k` is not a whole number of at least 1.

    >>> last_layers(2).trainable
    ['head', 'rest', 'layers[-2:]']
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise PlanError(
            f"last_layers(k={k!r}): k must be a whole number of at least 1; for the head alone use linear_probe."
        )
    return FreezePlan(trainable=["head", "rest", f"layers[-{k}:]"])


def gradual(*, every_epochs: float = 1.0, layers_per_stage: int = 1) -> FreezePlan:
    """Start with the head and unfreeze from the top down: gradual unfreezing of ULMFiT (Howard and Ruder, 2018).

    Args:
        every_epochs: Epochs between two stages.
        layers_per_stage: Layers that each stage unfreezes; the last stage unfreezes the embeddings.

    Raises:
        PlanError: For a number that is not above 0, or layers that are not whole.
    """
    return FreezePlan(trainable="head", stages=[TopDown(every_epochs=every_epochs, layers_per_stage=layers_per_stage)])


def lp_ft(*, probe: float = 0.3, head: float = HEAD_FACTOR) -> FreezePlan:
    """Train the head alone for the fraction `probe` of the run, then everything (LP-FT; Kumar et al., 2022).

    The head, which is new, has `head` times the learning rate throughout.

    Args:
        probe: The fraction of the run for which the head trains alone, above 0 and below 1.
        head: Factor on the learning rate of the head.

    Raises:
        PlanError: For a fraction or a factor out of range.
    """
    return FreezePlan(trainable="head", stages=[Stage(fraction=probe, unfreeze="all")], lr_factors={"head": head})


def fine_tune(*, freeze_epochs: float = 1.0, spread: float = 100.0) -> FreezePlan:
    """Train the head alone for `freeze_epochs`, then everything at half the learning rate, spread by depth.

    From there on the bottom of the model learns `spread` times more slowly than its head. The method and its numbers
    are those of `Learner.fine_tune` of fastai (Howard and Gugger, 2020), but for its cycles of the learning rate, which
    are the scheduler's, and for BatchNorm layers, which stay frozen with the rest.

    Args:
        freeze_epochs: Epochs for which the head trains alone.
        spread: How many times more slowly the bottom learns than the head, at least 1.

    Raises:
        PlanError: For a number out of range.
    """
    stage = Stage(epoch=freeze_epochs, unfreeze="all", lr_factor=0.5)
    return FreezePlan(trainable="head", stages=[stage], lr_spread=spread)


def auto_freeze(
    *,
    threshold: float = Settled.threshold,
    window: float = Settled.window,
    patience: int = Settled.patience,
    keep: int = BottomUp.keep,
) -> FreezePlan:
    """Train everything, and freeze layers from the bottom up as they settle (AutoFreeze; Liu et al., 2021).

    With `cache_frozen` the layers that are frozen are computed once more, and then cost nothing.

    Args:
        threshold: How slow layers must have become to count as settled; as in `Settled`.
        window: Over how many steps, or which fraction of the run, that is measured; as in `Settled`.
        patience: In how many windows in a row; as in `Settled`.
        keep: How many layers at the top are never frozen.
    """
    settled = Settled(threshold=threshold, window=window, patience=patience)
    return FreezePlan(trainable="all", stages=[BottomUp(settled=settled, keep=keep)])


def rotate(
    layers: int = 2, every: int = 20, *, seed: int = 0, order: str = "random", always: Selection | None = "head"
) -> FreezePlan:
    """Train `layers` layers at a time, others after each `every` steps (LISA, Pan et al., 2024; BAdam, Luo et al.).

    The optimizer keeps the state of what trains alone: a layer whose turn comes again starts fresh. The options are
    those of `Rotate`.

    Args:
        layers: How many layers train at a time.
        every: After how many optimizer steps it is the turn of others.
        seed: What the random order follows.
        order: "random", "ascending" (from the bottom up) or "descending".
        always: What trains throughout; None for nothing but the layers.

    Raises:
        PlanError: For a number out of range, or another order.
    """
    stages = [Rotate(layers=layers, every=every, seed=seed, order=order)]
    return FreezePlan(freeze="all", stages=stages) if always is None else FreezePlan(trainable=always, stages=stages)


def norms_only() -> FreezePlan:
    """Train the head and the normalisation layers (Frankle et al., 2021)."""
    return FreezePlan(trainable=["head", "norms"])


def biases_only() -> FreezePlan:
    """Train the head and the bias vectors (BitFit; Ben Zaken et al., 2022)."""
    return FreezePlan(trainable=["head", "biases"])


def full() -> FreezePlan:
    """Train everything that the model does not keep frozen itself."""
    return FreezePlan(trainable="all")


RECIPES: dict[str, Callable[..., FreezePlan]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        *(linear_probe, last_layers, gradual, lp_ft, fine_tune, auto_freeze, rotate),
        *(norms_only, biases_only, full),
    )
}


def recipe(text: str) -> FreezePlan:
    """Read a recipe as text: its name, and options after a colon; a value without a name is the first option's.

    >>> recipe("lp-ft:probe=0.2") == recipe("lp-ft:0.2") == lp_ft(probe=0.2)
    True

    Raises:
        PlanError: For an unknown name or option, or a value out of range.
    """
    name, _, options = text.partition(":")
    make = RECIPES.get(_key(text))
    if make is None:
        nearest = difflib.get_close_matches(_key(text).lower(), RECIPES, n=1)
        raise PlanError(
            f"{text!r:.80} is not a recipe.{' Nearest: ' + repr(nearest[0]) + '.' if nearest else ''} The recipes are "
            f"{', '.join(RECIPES)}. The path of a file with a plan ends in .yaml, .yml or .json."
        )
    known = list(inspect.signature(make).parameters)
    has = f"{name.strip()!r} has {'the options ' + ', '.join(known) if known else 'no options'}"
    given: dict[str, Any] = {}
    for place, part in enumerate(part for part in options.split(",") if part.strip()):
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals and known and place == 0:
            key, value = known[0], key
        if key not in known:
            raise PlanError(f"{text!r}: {key!r} is not an option; {has}.")
        if key in given:
            raise PlanError(f"{text!r}: {key!r} is given twice; {has}.")
        takes_words = isinstance(inspect.signature(make).parameters[key].default, str)
        if takes_words and not value:
            raise PlanError(f"{text!r}: {part.strip()!r} is not option=text; {has}.")
        given[key] = value if takes_words else _number(value, part.strip(), f"{text!r}", has)
    return make(**given)


def names_a_recipe(text: str) -> bool:
    """Tell whether this text begins with the name of a recipe, whatever its options.

    >>> names_a_recipe("last_layers:9=9"), names_a_recipe("plans/full.yaml")
    (True, False)
    """
    return _key(text) in RECIPES


def _key(text: str) -> str:
    return text.partition(":")[0].strip().replace("_", "-")


def _number(value: str, part: str, text: str, has: str) -> int | float:
    with suppress(ValueError):
        return int(value)
    with suppress(ValueError):  # not YAML, to which 1:30 is 90 and 1e-1 a text
        return float(value)
    raise PlanError(f"{text}: {part!r} is not option=number, as in 'gradual:every_epochs=0.5'; {has}.")
