"""How does the command line fail? One line on standard error and exit code 1; the traceback only with --debug.

Exit codes: 0 done; 1 the input can't be used, or something failed; 2 the command was typed wrongly (Typer's);
3 done, and the verdict is FAIL, or units could not be repaired; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import typer

from .._errors import AmortaxError

FAILED, VERDICT_FAIL, INTERRUPTED = 1, 3, 130
USER_MODULE = "amortax_model_"
"""The name of a model file's module begins with this, so that errors can say which line of it they come from."""


class InputError(AmortaxError, ValueError):
    """A job file, a model file or an option that can't be used: names the file or option, expected, and got."""


@contextlib.contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turns whatever goes wrong inside into one line on standard error and `typer.Exit(1)`; all of it with `debug`."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        typer.echo(f"error: {line_of(error)}", err=True)
        raise typer.Exit(FAILED) from None


def line_of(error: Exception) -> str:
    """What an error says, in one line; what amortax did not raise on purpose is named by its type and place."""
    text = " ".join(str(error).split())
    if isinstance(error, AmortaxError):
        return text
    if isinstance(error, MemoryError):
        return "out of memory; ask for fewer --num-samples, or split the table"
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, OSError):
        return what
    if place := place_in_model(error):
        return f"{place}: {what}; --debug shows where"
    return f"{what} (unexpected; --debug shows where, please report it)"


def place_in_model(error: BaseException) -> str:
    """`radon_model.py, line 12` if the error passed through the user's model file, else an empty text."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__", "")).startswith(USER_MODULE):
            return f"{frame.f_code.co_filename.rpartition('/')[2]}, line {line}"
    return ""
