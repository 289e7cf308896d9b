"""The shell command `hf-freeze`. A sub-command adds its arguments, and a function that returns status and output.

Whatever happens ends in an exit status and one line on standard error, never in a traceback: 1 when a check failed, 2
when what was typed cannot be run (or nobody reads the output any more), 130 after Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from io import TextIOWrapper

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison.compare_command import add_compare
from hf_freeze.reporting.debug_command import add_debug
from hf_freeze.reporting.merge_command import add_merge
from hf_freeze.reporting.preview.plan_command import add_plan

_NOT_RUN, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `hf-freeze`; return its exit status."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # do not fail because the terminal cannot show a letter
    status: int
    try:
        with redirect_stdout(sys.stderr):  # libraries write there when they are imported; ours alone is output
            status, output = options.run(options)
        print(output, flush=True)
    except BaseException as error:
        if options.traceback or isinstance(error, SystemExit):
            raise
        status, said = _ending(error)
        if said:
            print(f"hf-freeze: {' '.join(said.split())}", file=sys.stderr)
        _give_up_output()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-freeze", description="Look at models before they are fine-tuned, while they are, and after."
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_plan, add_compare, add_debug, add_merge):
        add(commands)
    return parser


def _ending(error: BaseException) -> tuple[int, str]:
    """Return the exit status of an error, and its message."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED, "interrupted."
    if isinstance(error, BrokenPipeError):
        return _NOT_RUN, ""
    if isinstance(error, FreezeError):
        return _NOT_RUN, str(error)
    if isinstance(error, OSError):
        named = f"{error.filename!r}: " if error.filename is not None else ""
        return _NOT_RUN, f"{named}{error.strerror or error}"
    # The cause may be the model's code, its files or hf_freeze.
    return _NOT_RUN, (
        f"unexpected {type(error).__name__}: {error}. 'hf-freeze --traceback ...' shows where; if that is in hf_freeze "
        "itself, please report it."
    )


def _give_up_output() -> None:
    """Keep Python from complaining at exit that standard output is closed."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # no file behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
