"""`save_trained_only`: the Trainer writes and reads only the weights that trained."""

import functools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.peft_support import adapter_names
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.attributes import replaced
from hf_freeze.training.backends import is_sharded
from hf_freeze.training.base_model import base_folders, base_of, name_of_base, transformers_models
from hf_freeze.training.merge_trained import HOW_TO_LOAD, can_be_merged, load_whole
from hf_freeze.training.planned_training import PlannedTraining
from hf_freeze.training.run import FreezeRun
from hf_freeze.training.setup import is_whole, uses_deepspeed
from hf_freeze.training.trained_file import (
    RESERVED_NAME,
    TRAINED_NAME,
    Base,
    Trained,
    holds_trained_only,
    refuse_loading,
    write_trained,
)
from hf_freeze.training.what_trained import WhatTrained
from hf_freeze.whole_files import write_text

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = MainProcessLogger(__name__)


class TrainedOnlyTrainerMixin(_Base):
    """Saves what trained and no more under `save_trained_only=True`, and reads such folders in any case.

    PEFT keeps its own format, which is as small, with the base weights that train beside it.
    """

    model: Any  # the Trainer's own annotation admits None, which it never is after construction
    _settings: FreezeArguments
    _freezing: PlannedTraining
    _tracked: WhatTrained | None = None
    _frozen_is_proved = False

    def __init__(self, *positional: Any, **kwargs: Any) -> None:
        if positional and _holds_only_what_trained(positional[0]):
            positional = (load_whole(positional[0]), *positional[1:])
        elif _holds_only_what_trained(kwargs.get("model")):
            kwargs["model"] = load_whole(kwargs["model"])
        super().__init__(*positional, **kwargs)
        if self._saves_trained_only:
            refuse_split_checkpoints(self._settings, self.args, self.model)
            _refuse_unsaved(self.model)
            if self.model_init is None:
                _refuse_base_inside(self.model, Path(str(self.args.output_dir)))
                if name_of_base(self.model) is None:
                    base_of(self.model)  # as it was handed in: nothing else brings back what a Trainer adds to it

    @property
    def _saves_trained_only(self) -> bool:
        return self._settings.save_trained_only and not isinstance(unwrap(self.model), PeftModel)

    def _what_trained(self) -> WhatTrained:
        if self._tracked is None or self._tracked.model is not unwrap(self.model):
            _refuse_base_inside(self.model, Path(str(self.args.output_dir)))
            self._tracked = WhatTrained(self.model)
        self._tracked.cut_at(self._freezing.required_bound.resolved.model_map.rows)
        return self._tracked

    @property
    def _trains_first(self) -> frozenset[str]:
        resolved = self._freezing.required_bound.resolved
        return resolved.model_map.every_alias(resolved.trains(0))

    def _track_run(self, run: FreezeRun) -> None:
        """Note what trains from the start of this run, right after its proof has read what is frozen."""
        if self._saves_trained_only:
            _refuse_unsaved(self.model)
            self._what_trained().begin(self._trains_first, known=run.frozen_digests)

    def _trains_from_here(self, run: FreezeRun) -> None:
        """Note which parameters are about to train, before the optimizer moves them."""
        if self._saves_trained_only:
            self._what_trained().add(run.resolved.model_map.every_alias(run.trains))

    def _from_start(self) -> frozenset[str]:
        # Checkpoints of another plan may lack any of it.
        return frozenset() if self._settings.ignore_plan_change else self._trains_first

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self._saves_trained_only:
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder, tracked = Path(str(self.args.output_dir) if output_dir is None else output_dir), self._what_trained()
        _refuse_saving_over_base(self.model, folder)
        with _weights_left_out(self.model, folder):
            super()._save(str(folder), state_dict={})
        tensors = tracked.tensors(also=self._trains_first, frozen_is_proved=self._frozen_is_proved)
        write_trained(Trained(tensors=tensors, base=base_of(self.model), plan=self._freezing.plan.to_dict()), folder)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # `verify_freeze` has just looked at them.
        proved = self._settings.verify_freeze and self._freezing.stage is not None
        with replaced(self, _frozen_is_proved=proved):
            super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *given: Any) -> None:
        if holds_trained_only(resume_from_checkpoint):
            self._what_trained().load(resume_from_checkpoint, from_start=self._from_start())
            return
        if self._saves_trained_only:
            base_of(self.model)  # before it is overwritten
        super()._load_from_checkpoint(resume_from_checkpoint, *given)

    def _load_best_model(self) -> None:
        folder = self.state.best_model_checkpoint
        if folder is None or not holds_trained_only(folder):
            super()._load_best_model()
            return
        logger.info("Loading what trained from %s (score: %s).", folder, self.state.best_metric)
        self._what_trained().load(folder, from_start=self._from_start())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        trained, run_folder = Path(checkpoint_folder) / TRAINED_NAME, Path(str(self.args.output_dir))
        if self._saves_trained_only and self.is_world_process_zero() and trained.exists():
            _clear(run_folder)  # whole weights of an earlier run would be uploaded, and read first
            shutil.copy(trained, run_folder)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card as the Trainer does, with how to load a folder that holds only what trained."""
        super().create_model_card(*args, **kwargs)
        card = Path(str(self.args.output_dir)) / "README.md"
        if self._saves_trained_only and self.is_world_process_zero() and card.exists():
            write_text(card, f"{card.read_text('utf-8').rstrip()}\n\n{how_to_load(base_of(self.model))}")


def how_to_load(base: Base) -> str:
    """Say in a model card how to load a folder that holds only what trained."""
    module, _, name = base.model_class.rpartition(".")
    source = repr(base.name or "path/to/the/base")
    revision = f", revision={base.revision!r}" if base.revision else ""
    merge, imports, build = "", "", f"...  # the {name} that training began with, with its weights"
    if can_be_merged(module):
        merge = (
            "Write the whole model, for\n`from_pretrained` and `pipeline`, with `hf-freeze merge FOLDER OUT`, or load"
        )
    if module.startswith("transformers."):
        imports = f"from transformers import AutoConfig, {name}\n"
        build = f"{name}.from_pretrained({source}, config=AutoConfig.from_pretrained(folder){revision})"
    return f"""{HOW_TO_LOAD}

`{TRAINED_NAME}` holds the tensors that trained; the others are those of the base, {source}. {merge or "Load"} it into \
the base:

```python
from hf_freeze import load_trained
{imports}
folder = "path/to/this/folder"
model = {build}
load_trained(model, folder)
```
"""


def _holds_only_what_trained(model: Any) -> bool:
    """Tell whether what is given as a model is the path of a folder that `save_trained_only` wrote."""
    return isinstance(model, str | Path) and holds_trained_only(model)


def _refuse_base_inside(model: nn.Module, output_dir: Path) -> None:
    """Raise `FreezeError` where checkpoints would be written over the base that they cannot be loaded without."""
    for folder in base_folders(model):
        parts = folder.relative_to(output_dir.resolve()).parts if folder.is_relative_to(output_dir.resolve()) else None
        if parts is not None and (len(parts) < 2 or parts[0].startswith(f"{PREFIX_CHECKPOINT_DIR}-")):
            raise FreezeError(
                f"save_trained_only=True: the base {str(folder)!r} is inside output_dir={str(output_dir)!r}, where "
                "files are overwritten and deleted, but no checkpoint can be loaded without its base. Give another "
                "output_dir."
            )


def _refuse_saving_over_base(model: nn.Module, folder: Path) -> None:
    """Raise `FreezeError` where saving what trained would delete the weights of the base, without which it is nothing.

    Only sentence-transformers saves models into folders inside.
    """
    inside = not isinstance(unwrap(model), PreTrainedModel)
    for base in base_folders(model):
        if folder.resolve() == base or (inside and folder.resolve() == base.parent):
            raise FreezeError(
                f"save_trained_only=True: {str(folder)!r} holds the base {str(base)!r}, without which what trained "
                "cannot be loaded. Save it to another folder."
            )


def _refuse_unsaved(model: nn.Module) -> None:
    """Raise `UnsupportedSetupError` for a model whose weights transformers saves in a way of its own."""
    model = unwrap(model)
    whole = model.state_dict()
    if other := next((name for name, value in whole.items() if not _is_plain(value)), None):
        raise UnsupportedSetupError(
            f"save_trained_only=True saves dense tensors, but {other!r} of this {type(model).__name__} is not one."
        )
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    known = {name for kind in named for name, _ in kind}
    if unknown := next((name for name in whole if name not in known), None):
        raise UnsupportedSetupError(
            f"save_trained_only=True saves parameters and buffers by their names, and {unknown!r} in the state_dict of "
            f"this {type(model).__name__} is the name of neither. Register it as a buffer, or take away the hook that "
            "renames it."
        )
    if RESERVED_NAME in whole:
        raise UnsupportedSetupError(
            f"save_trained_only=True: {RESERVED_NAME!r} of this {type(model).__name__} has a name that safetensors "
            "keeps for its own use, so that the file could not be read back. Rename it."
        )
    if any(getattr(inner, "hf_quantizer", None) is not None for inner in transformers_models(model).values()):
        raise UnsupportedSetupError(
            "save_trained_only=True: the model is quantized, and transformers saves it whole. Train PEFT adapters on "
            "it, which are saved alone anyway."
        )
    if not isinstance(model, PeftModel) and adapter_names(model):
        raise UnsupportedSetupError(
            "save_trained_only=True: the model has PEFT adapters inside, and saves those alone. Wrap it with "
            "peft.get_peft_model, whose checkpoints hold the adapters and the base weights that train."
        )


def refuse_split_checkpoints(settings: FreezeArguments, args: TrainingArguments, model: Any) -> None:
    """Raise `UnsupportedSetupError` where only what trained would be saved of weights that are kept in pieces."""
    module = unwrap(model) if isinstance(model, nn.Module) else None  # a path
    if not settings.save_trained_only or isinstance(module, PeftModel):
        return
    sharded = module is not None and any(map(is_sharded, module.parameters()))
    if sharded or not is_whole(args):
        name = "DeepSpeed" if uses_deepspeed(args) else "Tensor parallelism" if is_whole(args) else "FSDP"
        raise UnsupportedSetupError(
            f"save_trained_only=True: {name} writes all weights into its own checkpoints, in pieces that only it can "
            "read, and resumes from those. Leave it out, or train with DistributedDataParallel."
        )


def _clear(folder: Path) -> None:
    """Delete whole weights of an earlier run, which would be read first, before anything new is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        (folder / name).unlink(missing_ok=True)
    refuse_loading(folder)


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


@contextmanager
def _weights_left_out(model: nn.Module, folder: Path) -> Iterator[None]:
    """Make every transformers model inside save all but its weights; delete the weights that other modules wrote."""
    model = unwrap(model)
    with ExitStack() as stack:
        for inner in transformers_models(model).values():
            saves = functools.partial(_save_all_else, inner.save_pretrained)
            stack.enter_context(replaced(inner, save_pretrained=saves))
        if isinstance(model, PreTrainedModel):
            yield
            return
        _clear(folder)
        before = _whole_files(folder)
        yield
        for path in dict(_whole_files(folder).items() - before.items()):
            _clear(path.parent)


def _whole_files(folder: Path) -> dict[Path, int]:
    """Return every file of whole weights, those of other checkpoints inside among them, with when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob(SAFE_WEIGHTS_NAME)}


def _save_all_else(save_pretrained: Any, save_directory: Any, *positional: Any, **kwargs: Any) -> None:
    _clear(Path(save_directory))
    save_pretrained(save_directory, *positional, **{**kwargs, "state_dict": {}})
