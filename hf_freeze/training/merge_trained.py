"""Rebuild the whole model from a folder that holds only what trained: in memory, or for `from_pretrained`."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging
from transformers.utils.hub import CHAT_TEMPLATE_DIR

from hf_freeze.errors import FreezeError, in_one_line
from hf_freeze.training.load_trained import load_trained
from hf_freeze.training.snapshot import STAGE_BEST_NAME
from hf_freeze.training.trained_file import TRAINED_NAME, Base, holds_trained_only, read_base, refuse_changed_config
from hf_freeze.whole_files import whole_folder

HOW_TO_LOAD = "## How to load it"  # in a model card
_LIBRARIES = ("transformers", "sentence_transformers")
_NOT_OF_THE_MODEL = (
    TRAINED_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
    SCALER_NAME,
    TRAINER_STATE_NAME,
    STAGE_BEST_NAME,
)


def merge_trained(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], base: str | os.PathLike[str] | None = None
) -> Path:
    """Write the whole model of a folder that holds only what trained, as the Trainer would have saved it.

    Args:
        folder: What a Trainer with `save_trained_only=True` saved, a checkpoint or the final model.
        out: A new folder, for `from_pretrained`. Tokenizer, threshold and training arguments are copied into it.
        base: The folder or hub name of the base, where it is no longer where training found it.

    Returns:
        `out`, as a path.

    Raises:
        FreezeError: Where `out` exists and is not an empty folder, where the base is not there, or not what it was when
            training began, or the folder is damaged. Nothing is then written.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.samefile(".")):
        raise FreezeError(f"{str(out)!r} exists. Give a new folder to write the whole model to.")
    model = _load(folder, base)
    with whole_folder(out.resolve()) as unfinished:
        model.save_pretrained(str(unfinished))
        for path in filter(_is_of_the_model, folder.iterdir()):
            shutil.copy(path, unfinished)
        for part in (CHAT_TEMPLATE_DIR, *_modules_in(folder)):
            if (folder / part).is_dir():
                shutil.copytree(folder / part, unfinished / part, ignore=_no_index, dirs_exist_ok=True)
        _say_no_more_how_to_load(unfinished / "README.md")
    return out


def can_be_merged(model_class: str) -> bool:
    """Tell whether models of this class, given as module.class, can be loaded by name."""
    return model_class.partition(".")[0] in _LIBRARIES


def load_whole(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load the base that a folder names, and what trained into it. Raises as `merge_trained` does."""
    model = _load(folder, None)
    if not isinstance(model, PreTrainedModel):
        raise FreezeError(
            f"{str(folder)!r} holds only what trained of a {type(model).__name__}. Write the whole model with "
            "'hf-freeze merge FOLDER OUT', and load that."
        )
    return model


def _load(folder: str | os.PathLike[str], base: str | os.PathLike[str] | None) -> Any:
    """What has no weights in a model of sentence-transformers, such as how it pools, is then that of the base."""
    if not holds_trained_only(folder):
        raise FreezeError(_why_not_merged(Path(folder)))
    described = read_base(folder)
    refuse_changed_config(folder)
    model_class = _class_of(described, folder)
    name, revision = (described.name, described.revision) if base is None else (os.fspath(base), None)
    if name is None:
        raise FreezeError(
            f"The base of {str(folder)!r} cannot be found: it was built without a name, perhaps from a configuration. "
            "Save it with save_pretrained and give its folder as base (--base)."
        )
    if Path(name).resolve() == Path(folder).resolve():
        raise FreezeError(
            f"{str(folder)!r} cannot be its own base: it holds only what trained. Give the model that training began "
            "with as base (--base)."
        )
    if holds_trained_only(name):
        model = _load(name, None)
    else:
        model = _load_base(model_class, name, folder, dtype=described.dtype, revision=revision)
    load_trained(model, folder)
    return model


def _why_not_merged(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return (
            f"{str(folder)!r} holds a PEFT adapter. Put it on its base with PeftModel.from_pretrained(base, folder), "
            "load the base weights that trained with hf_freeze.load_thawed(model, folder), and merge them with "
            "model.merge_and_unload()."
        )
    return (
        f"{str(folder)!r} is not a folder that a Trainer with save_trained_only=True wrote: it has no "
        f"{TRAINED_NAME!r}, or the whole weights beside it."
    )


def _is_of_the_model(path: Path) -> bool:
    left_by_a_killed_save = path.name.startswith(".") and path.suffix == ".tmp"
    of_the_run = path.name in _NOT_OF_THE_MODEL or path.name.startswith("rng_state")
    return path.is_file() and not of_the_run and not left_by_a_killed_save


def _say_no_more_how_to_load(card: Path) -> None:
    if card.exists():
        before, _, section = card.read_text(encoding="utf-8").partition(HOW_TO_LOAD)
        after = section.partition("\n## ")
        card.write_text(f"{before.rstrip()}\n{''.join(after[1:])}", encoding="utf-8")


def _class_of(described: Base, folder: str | os.PathLike[str]) -> Any:
    library, name = described.model_class.partition(".")[0], described.model_class.rpartition(".")[2]
    sentences = library == "sentence_transformers"
    classes = import_module("sentence_transformers") if sentences else import_module("transformers")
    found = getattr(classes, name, None) if can_be_merged(described.model_class) else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise FreezeError(
            f"{str(folder)!r} belongs to a {described.model_class}, which is not a class of transformers or "
            "sentence_transformers. Build that model with the weights of its base, then call "
            "hf_freeze.load_trained(model, folder), and save it."
        )
    return found


def _load_base(model_class: Any, name: str, folder: str | os.PathLike[str], *, dtype: str, revision: str | None) -> Any:
    options: dict[str, Any] = {} if revision is None or Path(name).is_dir() else {"revision": revision}
    try:
        with _without_load_report():
            if not issubclass(model_class, PreTrainedModel):
                return _sentence_model(model_class, name, folder, dtype=dtype, **options)
            # What does not fit is what trained, or is named when the base is compared.
            config = AutoConfig.from_pretrained(folder)
            tokens, added = _tokens_of(config, AutoConfig.from_pretrained(name, **options))
            if added:
                config.get_text_config().vocab_size = tokens
            model = model_class.from_pretrained(
                name, config=config, dtype=dtype, ignore_mismatched_sizes=True, **options
            )
            if added:  # their rows, and any beyond, are what trained or come with it
                model.resize_token_embeddings(tokens + added, mean_resizing=False)
            return model
    except Exception as error:  # the hub, the files and the code of a model can each fail in their own way
        raise FreezeError(
            f"The base {name!r} of {str(folder)!r} cannot be loaded ({in_one_line(error, most=300)}). "
            "Was it moved? Give its folder or hub name as base (--base), or "
            "load it as you did for training, and call hf_freeze.load_trained(model, folder)."
        ) from error


def _sentence_model(model_class: Any, name: str, folder: str | os.PathLike[str], *, dtype: str, **options: Any) -> Any:
    options |= {"device": "cpu", "model_kwargs": {"dtype": dtype, "ignore_mismatched_sizes": True}}
    if "num_labels" in signature(model_class).parameters:  # a cross-encoder
        options["num_labels"] = AutoConfig.from_pretrained(folder).num_labels
    return model_class(name, **options)


def _modules_in(folder: Path) -> list[str]:
    """Return the folders of the modules of sentence-transformers."""
    listed = folder / "modules.json"
    return [module["path"] for module in json.loads(listed.read_bytes()) if module["path"]] if listed.exists() else []


def _no_index(folder: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name == SAFE_WEIGHTS_INDEX_NAME]


def _tokens_of(config: PretrainedConfig, of_base: PretrainedConfig) -> tuple[int, int]:
    """Return how many tokens the base knows, and how many were added for training."""
    now, before = (int(getattr(one.get_text_config(), "vocab_size", None) or 0) for one in (config, of_base))
    return (before, now - before) if 0 < before < now else (now, 0)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence the report that the head is new: what trained is loaded next."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
