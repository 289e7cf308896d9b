"""Set arithmetic: which tensors a declaration leaves trainable. Names are canonical."""

from collections.abc import Mapping

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.selection.language import Selection, Specificity, evaluate
from hf_freeze.selection.model_map import ModelMap


def trainable_only(selection: Selection, model_map: ModelMap) -> frozenset[str]:
    """Return what trains when exactly `selection` should train."""
    return _may_train(evaluate(selection, model_map).names, model_map)


def all_but(selection: Selection, model_map: ModelMap) -> frozenset[str]:
    """Return what trains when `selection` is frozen: the rest; what was handed in frozen only where '!' names it."""
    picked = evaluate(selection, model_map)
    others = {
        name: picked.taken_out.get(name, Specificity.EVERYTHING) for name in model_map.parts.keys() - picked.names
    }
    return _may_train(others, model_map)


def changed(
    trainable: frozenset[str],
    model_map: ModelMap,
    *,
    unfreeze: Selection | None = None,
    freeze: Selection | None = None,
) -> frozenset[str]:
    """Return what trains after unfreezing `unfreeze` and then freezing `freeze`, which wins where both pick."""
    to_unfreeze = _may_train(evaluate(unfreeze, model_map).names, model_map) if unfreeze is not None else frozenset()
    to_freeze = frozenset(evaluate(freeze, model_map).names) if freeze is not None else frozenset()
    return (trainable | to_unfreeze) - to_freeze


def _may_train(picked: Mapping[str, Specificity], model_map: ModelMap) -> frozenset[str]:
    """Drop what may not train: handed in frozen and not named, held aside by PEFT, or not floating point."""
    _refuse_integers([name for name, how in picked.items() if how is Specificity.NAMED], model_map)
    return frozenset(name for name, how in picked.items() if _may_unfreeze(name, how, model_map))


def _may_unfreeze(name: str, how: Specificity, model_map: ModelMap) -> bool:
    if name in model_map.inactive or name in model_map.not_floating:
        return False
    if name not in model_map.frozen_at_hand_in:
        return True
    return how is Specificity.NAMED or (how is Specificity.ROLE and name in model_map.frozen_by_peft)


def _refuse_integers(named: list[str], model_map: ModelMap) -> None:
    if bad := sorted(set(named) & model_map.not_floating):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UnsupportedSetupError(
            f"{bad[0]!r}{more} cannot be trained: the values are integers (quantised weights), which have no gradient. "
            "Train the norms, the head or an adapter instead."
        )
