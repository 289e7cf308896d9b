"""What trained up to a moment of a plan, and what the optimizer then has state of. Names are canonical."""

from hf_freeze.plan.freeze_plan import ResolvedPlan


def trained_so_far(resolved: ResolvedPlan, stage: int, period: int = 0) -> frozenset[str]:
    """Return what trained in the stages up to this one; of a rotation, in the periods up to this one."""
    if resolved.rotation is None:
        return frozenset().union(*resolved.stages[: stage + 1])
    last = min(period, resolved.rotation.periods_per_cycle - 1)
    return frozenset().union(*(resolved.trains(stage, earlier) for earlier in range(last + 1)))


def with_state(resolved: ResolvedPlan, stage: int, period: int = 0) -> frozenset[str]:
    """Return what the optimizer has state of after a step of this stage, or of this period of a rotation."""
    if resolved.rotation is not None:
        return resolved.trains(stage, period)
    held = frozenset[str]()
    for index, names in enumerate(resolved.stages[: stage + 1]):
        held = (held - resolved.forgotten(index)) | names
    return held
