"""The shell command `hf-freeze merge`: the whole model of a folder that holds only what trained."""

import argparse
from typing import Any

from transformers import logging

from hf_freeze.training.merge_trained import merge_trained


def add_merge(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    command = commands.add_parser(
        "merge",
        help="write the whole model of a folder that save_trained_only wrote",
        description="Put what trained into its base, and write a folder for from_pretrained. The base is compared with "
        "what it was when training began.",
    )
    command.add_argument("folder", metavar="FOLDER", help="a checkpoint or final model of save_trained_only")
    command.add_argument("out", metavar="OUT", help="a new folder for the whole model")
    command.add_argument("--base", help="the base's folder or hub name, where it is no longer where training found it")
    command.set_defaults(run=_run_merge)


def _run_merge(options: argparse.Namespace) -> tuple[int, str]:
    """Run the sub-command; return its exit status and what to print."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    out = merge_trained(options.folder, options.out, options.base)
    return 0, f"Wrote the whole model to {str(out)!r}."
