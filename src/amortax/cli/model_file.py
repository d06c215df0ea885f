"""Where does the model come from? From the function that the user names on the command line, as FILE.py:FUNCTION.

Nothing that an artifact says is ever imported: this file and function are the user's own words.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from .._errors import AmortaxError
from .errors import USER_MODULE, InputError, line_of, place_in_model


def read_model(spec: str, folder: Path = Path()) -> Callable[..., Any]:
    """The function that `spec` ("radon_model.py:model") names; a relative file is looked for in `folder`.

    Modules beside the file can be imported by it, as if it were run as a script.

    Raises:
        InputError: for another form, no such file, a file that raises, and no such function, naming which.

    """
    name, colon, function = spec.rpartition(":")
    if not (colon and name and function):
        raise InputError(f"model {spec!r}: expected FILE.py:FUNCTION, such as radon_model.py:model")
    path = folder / name
    if path.suffix != ".py":
        raise InputError(f"model {spec!r}: {name!r} is not a .py file; expected FILE.py:FUNCTION")
    if not path.is_file():
        raise InputError(f"model file {path}: no such file")
    module = _run(path)
    found = getattr(module, function, None)
    if found is None:
        raise InputError(f"model file {path} has no function {function!r}{_other(module, function)}")
    if not callable(found):
        raise InputError(f"model file {path}: {function!r} is a {type(found).__name__}, not a function")
    return found


def _other(module: ModuleType, wanted: str) -> str:
    """The functions that the file defines, or the one that may have been meant."""
    own = [n for n, x in vars(module).items() if callable(x) and getattr(x, "__module__", None) == module.__name__]
    if close := difflib.get_close_matches(wanted, own, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; it defines {', '.join(own)}" if own else "; it defines none"


def _run(path: Path) -> ModuleType:
    name = USER_MODULE + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"model file {path} can't be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        with _as_script(path.resolve().parent):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"model file {path}, line {error.lineno}: {error.msg}") from error
    except AmortaxError:
        raise
    except (Exception, SystemExit) as error:
        where = place_in_model(error) or path
        said = line_of(error) if isinstance(error, AmortaxError) else f"{type(error).__name__}: {error}"
        raise InputError(f"model file {where} failed on import: {said}") from error
    return module


@contextmanager
def _as_script(folder: Path) -> Iterator[None]:
    """Modules in `folder` can be imported, and no byte code is left there."""
    path, written = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = written
