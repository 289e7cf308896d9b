"""Proof that training did what the plan says: frozen weights did not change, trainable ones did, replicas are equal."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.distributed as dist

from hf_freeze.errors import FreezeViolation
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.tables import part_labels
from hf_freeze.selection.norms import is_norm
from hf_freeze.selection.rows import rows_named
from hf_freeze.training.backends import group_members, is_sharded, local, uses_master_weights
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.digests import digests, over_shards
from hf_freeze.training.freezing import frozen_modules

logger = MainProcessLogger(__name__)

# Optimizers may skip their first steps: RAdam makes none before its fifth, a gradient scaler none until its scale fits.
_STEPS_THAT_MAY_BE_SKIPPED = 7


class FreezeProof:
    """Watches one `train()` call on one model.

    Call `watch` once it is set what trains, `before_step` and `after_step` around each optimizer step, `verify`
    whenever the frozen part must be what it was, and `conclude` at the end. The weights are read in full only at
    `watch` and `verify`; in between, only what has not yet been seen to move, at steps 1, 2, 4, 8, ...
    """

    def __init__(self, bound: BoundPlan, *, hold_buffers: bool) -> None:
        self._bound = bound
        self._holds_statistics = hold_buffers and any(
            next(module.buffers(), None) is not None for module in filter(is_norm, bound.model.modules())
        )
        self._trainable: Collection[str] = frozenset()
        self._with_gradient: Collection[str] = frozenset()
        self.frozen: dict[str, int] = {}
        """Name -> digest of what is frozen, as it was at `watch`."""
        self._unmoved: dict[str, int] = {}
        self._moved: set[str] = set()
        self._had_rate: set[str] = set()
        self._had_gradient: set[str] = set()
        self._had_visible_step: set[str] = set()
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0

    def watch(self, optimizer: torch.optim.Optimizer, trainable: Collection[str]) -> None:
        """Remember the frozen weights, and begin to wait for the trainable ones to move.

        From the second time on it must follow right after `verify`, which has read what stays frozen.
        """
        self._optimizer = optimizer
        self._trainable = trainable
        self._with_gradient = self._bound.resolved.ever_trainable if uses_master_weights(optimizer) else trainable
        named = self._bound.parameters
        frozen = self._frozen_tensors(named)
        newly = {name: tensor for name, tensor in frozen.items() if name not in self.frozen}
        known = {name: digest for name, digest in self.frozen.items() if name in frozen}
        self.frozen = known | digests(newly, merge_zeros=uses_master_weights(optimizer))
        self._refuse_left_out(named)
        waiting = {name: p for name, p in named.items() if name in trainable and name not in self._moved}
        self._unmoved |= digests(waiting)
        self._steps = 0

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note which unmoved parameters have a gradient and a learning rate; call it before the optimizer steps."""
        self._steps += 1
        if not self._unmoved or not self._is_sampled():
            return
        rates = _rates(optimizer)
        named = self._bound.parameters.items()
        # A run resumed right at a transition saw nothing move of what the stage before trained.
        waited_for = self._unmoved.keys() & self._trainable
        waiting = {name: p for name, p in named if name in waited_for and rates.get(id(p), 0) > 0}
        if self._steps > _STEPS_THAT_MAY_BE_SKIPPED or not uses_master_weights(optimizer):
            self._had_rate |= waiting.keys()  # whose gradients DeepSpeed keeps to itself
        waiting = {name: p for name, p in waiting.items() if p.grad is not None}
        self._had_gradient |= _names_where(_has_gradient, waiting)
        if self._steps > _STEPS_THAT_MAY_BE_SKIPPED:
            self._had_visible_step |= _names_where(lambda p: _steps_visibly(p, rates[id(p)]), waiting)

    def after_step(self) -> None:
        """Cross off what has moved."""
        if self._unmoved and self._is_sampled():
            self._cross_off(self._bound.parameters)

    def verify(self) -> None:
        """Raise `FreezeViolation` when something frozen moved since `watch`, or when replicas differ.

        What moved on one process only is raised on all of them.
        """
        named = self._bound.parameters
        now = digests(self._frozen_tensors(named), merge_zeros=uses_master_weights(self._optimizer))
        moved = [name for name, digest in self.frozen.items() if now.get(name, digest) != digest]
        # This comes first, because all processes must take part: one that raised earlier would leave the others
        # waiting. For buffers only whether they moved: except under DistributedDataParallel, nothing keeps them equal
        # in training.
        differing = _differing_replicas(named, {name: name in moved for name in self.frozen if name not in named})
        self._refuse_left_out(named)
        self._cross_off(named)
        if moved:
            raise FreezeViolation(f"{_listing(moved)} changed although frozen. {self._why_moved(moved)}")
        if differing:
            raise FreezeViolation(
                f"{_listing(differing)} differ between the processes. Likely causes: a callback that writes to weights "
                "on one of them, parameters that DistributedDataParallel does not reduce (unfrozen without rebuilding "
                "its reducer), or weights initialised without a common seed."
            )
        self._refuse_other_flags(named)

    def conclude(self, *, is_verified: bool = False) -> None:
        """Verify, and raise `FreezeViolation` when something trainable should have moved and did not.

        With `is_verified`, `verify` was called after the last step, and the weights may be others by now.

        What never had a gradient is a violation where it is all of the head, of a layer, or of an entry of the plan,
        and a warning where it is a lone tensor that the model does not use in this task. Steps too small to show in the
        parameter's precision, and steps that an optimizer skipped in its first few, are a warning.
        """
        if not is_verified:
            self.verify()
        if stuck := [name for name in self._unmoved if name in self._had_visible_step]:
            raise FreezeViolation(
                f"{_listing(stuck)} had a gradient and a learning rate above 0, but did not change. Likely cause: an "
                "optimizer or a scaler that skipped every step."
            )
        idle = [name for name in self._unmoved if name in self._had_rate - self._had_gradient]
        if whole := [label for label, names in self._units().items() if names <= set(idle)]:
            tokens = "no batch with a token of these rows, " if any(map(rows_named, idle)) else ""
            raise FreezeViolation(
                f"{_listing(idle)} did not change: no gradient other than zero ever reached them. Nothing of "
                f"{', '.join(whole)} trained. Likely causes: {tokens}detach() or no_grad() between it and the loss, or "
                "a part that the model does not use."
            )
        self._warn(
            idle,
            "no gradient other than zero ever reached them. The model seems not to use them in this task; if so, "
            "freeze them",
        )
        named = self._bound.parameters.items()
        dtypes = {name: p.dtype for name, p in named if name in self._unmoved and name in self._had_gradient}
        for dtype in dict.fromkeys(dtypes.values()):
            small = [name for name in dtypes if dtypes[name] is dtype]
            self._warn(
                small, f"their steps, learning rate times gradient, were skipped or too small to show in {dtype}"
            )

    def _warn(self, names: Sequence[str], why: str) -> None:
        if names:
            logger.warning("%s did not change: %s.", _listing(names), why)

    def _units(self) -> dict[str, set[str]]:
        """Return what must change at least in part: head, layers and entries of the plan, as far as they train."""
        tried = self._moved | self._unmoved.keys()
        units: dict[str, set[str]] = {repr(entry): set(names) for entry, names in self._bound.resolved.declared.items()}
        for name, label in part_labels(self._bound.resolved.model_map).items():
            if label == "head" or label.endswith("]"):
                units.setdefault(label, set()).add(name)
        return {label: names & tried for label, names in units.items() if names & tried}

    def _cross_off(self, named: Mapping[str, torch.Tensor]) -> None:
        now = digests({name: p for name, p in named.items() if name in self._unmoved})
        moved = {name for name, digest in now.items() if digest != self._unmoved[name]}
        self._moved |= moved
        self._unmoved = {name: digest for name, digest in self._unmoved.items() if name not in moved}

    def _is_sampled(self) -> bool:
        return self._steps & (self._steps - 1) == 0

    def _frozen_tensors(self, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Frozen parameters, and the statistics of the normalisations that are held in eval mode."""
        frozen, model = {name: p for name, p in named.items() if name not in self._trainable}, self._bound.model
        if not self._holds_statistics:
            return frozen
        held = {
            id(buffer)
            for frozen_module in frozen_modules(model, self._trainable)
            for module in filter(is_norm, frozen_module.modules())
            for buffer in module.buffers()
        }
        return frozen | {name: buffer for name, buffer in model.named_buffers() if id(buffer) in held}

    def _refuse_left_out(self, named: Mapping[str, torch.Tensor]) -> None:
        if self._optimizer is None:
            return
        held = {id(p) for members in group_members(self._optimizer) for p in members}
        ever = self._bound.resolved.ever_trainable
        if left_out := [name for name, p in named.items() if name in ever and id(p) not in held]:
            raise FreezeViolation(
                f"{_listing(left_out)} should train, but the optimizer does not hold it, so it would never be updated. "
                "Build the optimizer with hf_freeze.param_groups(model, args, plan=plan), or let the trainer build it "
                "while they require a gradient, and do not replace weights afterwards. Under DeepSpeed, all that ever "
                "trains requires a gradient when the engine is built, and the optimizer is engine.optimizer."
            )

    def _refuse_other_flags(self, named: Mapping[str, torch.Tensor]) -> None:
        flipped = [name for name, p in named.items() if p.requires_grad is not (name in self._with_gradient)]
        if not flipped:
            return
        is_on = named[flipped[0]].requires_grad
        same = [name for name in flipped if named[name].requires_grad is is_on]
        found = "require a gradient while frozen" if is_on else "should train but no longer require a gradient"
        raise FreezeViolation(
            f"{_listing(same)} {found}. Something set requires_grad behind the plan's back since this stage began. "
            "Declare what trains, and from when on, as a stage of the plan."
        )

    def _why_moved(self, moved: Sequence[str]) -> str:
        if not set(moved) <= self._bound.parameters.keys():
            return (
                "Buffers are among them: a module was put into train mode after the trainer had set its frozen modules "
                "to eval (a BatchNorm updates its statistics there). Do not call train() on it inside forward()."
            )
        return (
            "Likely causes: an optimizer or a callback that writes to weights without a gradient (weight decay applied "
            "by hand, a moving average, clipping of weights), or requires_grad set to True behind the plan's back."
        )


def _differing_replicas(tensors: Mapping[str, torch.Tensor], moved: Mapping[str, bool]) -> list[str]:
    """Name the tensors that are not bit-equal on all processes, and what `moved` on some only.

    Every process gets the same answer.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return []
    if any(map(is_sharded, tensors.values())):
        return []  # sharded: the ranks hold different pieces by design
    device = next(iter(tensors.values())).device
    values = {**digests(tensors), **moved}
    mine = torch.tensor(list(values.values()), device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    differs = torch.stack([theirs != everyone[0] for theirs in everyone]).any(dim=0).tolist()
    return [name for name, different in zip(values, differs, strict=True) if different]


def _names_where(holds: Callable[[torch.Tensor], torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """Name the tensors for which `holds` returns a count above 0, here or in the shard of another rank."""
    if not tensors:
        return set()
    with torch.no_grad():
        counts = torch.stack([holds(tensor) for tensor in tensors.values()])
    return {name for name, count in zip(tensors, over_shards(counts, tensors.values()).tolist(), strict=True) if count}


def _has_gradient(parameter: torch.Tensor) -> torch.Tensor:
    return local(_gradient(parameter)).count_nonzero()


def _steps_visibly(parameter: torch.Tensor, rate: float) -> torch.Tensor:
    """Count the elements that a step of either kind would change: by the rate times the gradient, or by the rate.

    SGD steps by the one, Adam about by the other; where rounding swallows both, standing still is not a fault.
    """
    value, gradient = local(parameter), local(_gradient(parameter))
    seen = (value - rate * gradient != value) & (value - rate * gradient.sign() != value)
    return seen.count_nonzero()


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    groups = zip(optimizer.param_groups, group_members(optimizer), strict=True)
    return {id(p): float(group["lr"]) for group, members in groups for p in members}


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(repr, names[:3]))}{more}"
