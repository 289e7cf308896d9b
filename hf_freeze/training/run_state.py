"""Where a run is: what its checkpoints keep of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_freeze.plan.plateau import PlateauWatch
from hf_freeze.training.settling import SettlingWatch


@dataclass
class RunState:
    """What a resumed run must know of the run that was interrupted, beside the step."""

    stage: int = 0
    fired: dict[int, int] | None = None
    watch: PlateauWatch | None = None
    begins: list[int] = field(default_factory=list)
    settling: dict[int, SettlingWatch] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        fired = {str(stage): step for stage, step in (self.fired or {}).items()}
        watch = self.watch.to_dict() if self.watch else None
        settling = {str(stage): watch.to_dict() for stage, watch in self.settling.items() if stage > self.stage}
        return {"stage": self.stage, "fired": fired, "watch": watch, "begins": self.begins, "settling": settling}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunState":
        """Read what `to_dict` returned."""
        fired = {int(stage): step for stage, step in values["fired"].items()}
        watch = PlateauWatch(**values["watch"]) if values["watch"] else None
        settling = {int(stage): SettlingWatch.from_dict(seen) for stage, seen in values.get("settling", {}).items()}
        return cls(values["stage"], fired, watch, values.get("begins", []), settling)
