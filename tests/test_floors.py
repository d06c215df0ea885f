"""The house law of DESIGN.md section 6, read with `ast`: imports go down, packages keep to their rooms.

A room is a module or a package directly under `src/amortax`; `FLOORS` is their one list.
Each rule is a function from the package's folder to complaints, and is tested on trees with a planted violation.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "amortax"

# Lowest first. A room imports rooms on lower floors and, on its own floor, rooms listed before it.
FLOORS = (
    ("_errors", "_files", "_types", "_recipe", "_linalg", "_network"),
    ("data", "joint", "encoders", "families"),
    (
        "frames",
        "tree_frame",
        "heads",
        "guide",
        "own",
        "inputs",
        "nesting",
        "recipes",
        "intake",
        "unsuited",
        "describe",
        "beliefs",
        "defaults",
        "plan",
    ),
    ("objectives",),
    ("train",),
    ("psis", "chunks", "importance", "evidence", "answer", "refine"),
    ("checks",),
    (
        "artifact",
        "interop",
        "elsewhere",
        "pairs",
        "observation",
        "filter",
        "stored",
        "repair",
        "posterior",
        "comparison",
        "seeds",
        "recalibrated",
        "focus",
        "fitting",
    ),
    ("models",),
    ("plots", "demo_report", "demo", "cli"),
)
COLUMNS = 1  # the floor whose rooms stand apart: none of them imports its neighbour
FRONT = "__init__"  # the public names: may import every room, no room imports it
NEVER = {("checks", "train"): "checks takes (joint, guide, data), it never trains"}

ONLY_IN = {
    "numpyro": {"joint", "interop", "models"},
    "optax": {"train", "refine"},
    "matplotlib": {"plots"},
    "pyarrow": {"data", "cli"},
}
# Imported inside the function that needs them; the set names the rooms that may do so at module level.
LAZY: dict[str, set[str]] = {
    "matplotlib": {"plots"},
    "typer": {"cli"},
    **{name: set() for name in ("xarray", "pyarrow", "flowjax", "blackjax", "rich", "arviz", "pandas", "polars")},
}

MAX_FILE, MAX_FUNCTION = 300, 40
SHAPELESS = {"utils", "util", "helpers", "helper", "misc", "common"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    where: str  # "joint/probe.py:12"
    room: str  # the importing file's room
    target: str  # dotted and absolute: "amortax.data.Units", "numpyro.handlers"
    top: str  # the package that `target` is in: "numpyro"
    at_module_level: bool


def sources(package: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """Each Python file below `package`: its path from there, its text and its tree."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(package), text, ast.parse(text, str(path))


def room_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def import_nodes(node: ast.AST, at_module_level: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_module_level
        else:
            yield from import_nodes(child, at_module_level and not isinstance(child, FunctionNode))


def targets(node: ast.Import | ast.ImportFrom, parents: tuple[str, ...]) -> list[str]:
    """What `node` imports, dotted and absolute; `parents` is the package of the file it stands in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = parents[: len(parents) - node.level + 1] if node.level else ()
    return [".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names]


def imports(package: Path) -> Iterator[Import]:
    for file, _, tree in sources(package):
        parents = (package.name, *file.parts[:-1])
        for node, at_module_level in import_nodes(tree):
            for target in targets(node, parents):
                yield Import(f"{file}:{node.lineno}", room_of(file), target, target.split(".")[0], at_module_level)


def rooms_imported(package: Path) -> Iterator[tuple[str, str, str]]:
    """(where, importing room, imported room) of every import inside the package that leaves its room."""
    for where, room, target, top, _ in imports(package):
        rest = target.split(".")[1:]
        if top == package.name and room != FRONT and rest[:1] != [room]:
            yield where, room, rest[0] if rest else FRONT


def place(room: str) -> tuple[int, int] | None:
    """(floor, place on it) of a listed room."""
    return next(((number, floor.index(room)) for number, floor in enumerate(FLOORS) if room in floor), None)


def objection(room: str, other: str) -> str | None:
    """Why `room` may not import `other`; None where it may, or where `room` itself is unknown."""
    here, there = place(room), place(other)
    if there is None:
        return f"{other!r} is no room of the house; import from the room that defines it, never from __init__.py"
    if here is None:
        return None
    if there[0] > here[0]:
        return f"{room} (floor {here[0]}) imports {other} (floor {there[0]}): imports go down; take it as an argument"
    if there[0] == here[0] == COLUMNS:
        return f"{room} imports its neighbour {other}; what both need goes to floor 0, what joins them to floor 2"
    if there > here:
        return f"{room} imports {other}, which stands after it on floor {here[0]}: {FLOORS[here[0]]}"
    return NEVER.get((room, other))


def imports_go_down(package: Path) -> list[str]:
    found = ((where, objection(room, other)) for where, room, other in rooms_imported(package))
    return [f"{where}: {reason}" for where, reason in found if reason]


def every_room_is_listed(package: Path) -> list[str]:
    return [
        f"{file}: {room_of(file)!r} is on no floor; add it to FLOORS in tests/test_floors.py "
        "(above all that it imports, below all that imports it) and to DESIGN.md section 6"
        for file, *_ in sources(package)
        if room_of(file) != FRONT and place(room_of(file)) is None
    ]


def packages_stay_in_their_rooms(package: Path) -> list[str]:
    return [
        f"{where}: {top} is imported in {sorted(ONLY_IN[top])} only, not in {room}"
        for where, room, _, top, _ in imports(package)
        if room not in ONLY_IN.get(top, {room})
    ]


def heavy_packages_are_lazy(package: Path) -> list[str]:
    return [
        f"{where}: {top} is heavy or optional; import it inside the function that needs it"
        for where, room, _, top, at_module_level in imports(package)
        if at_module_level and room not in LAZY.get(top, {room})
    ]


def files_are_short(package: Path) -> list[str]:
    return [
        f"{file}: {len(text.splitlines())} lines, at most {MAX_FILE}; a file answers one question"
        for file, text, _ in sources(package)
        if len(text.splitlines()) > MAX_FILE
    ]


def function_lines(function: FunctionNode) -> int:
    """From `def` to the last line, without the docstring."""
    counted = [function, *(function.body[:1] if ast.get_docstring(function) else [])]
    heights = [node.end_lineno - node.lineno + 1 for node in counted]
    return heights[0] - sum(heights[1:])


def functions_are_short(package: Path) -> list[str]:
    return [
        f"{file}:{node.lineno}: {node.name} has {function_lines(node)} lines, at most {MAX_FUNCTION}; "
        "name its parts as functions"
        for file, _, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, FunctionNode) and function_lines(node) > MAX_FUNCTION
    ]


def names_say_something(package: Path) -> list[str]:
    return [
        f"{file}: a name that says nothing; name the file for the question it answers"
        for file, *_ in sources(package)
        if any(part.removesuffix(".py").strip("_") in SHAPELESS for part in file.parts)
    ]


def files_have_docstrings(package: Path) -> list[str]:
    return [
        f"{file}: no module docstring; its first line says which question the file answers"
        for file, _, tree in sources(package)
        if not ast.get_docstring(tree)
    ]


def obey(rule: Callable[[Path], list[str]]) -> None:
    assert PACKAGE.is_dir(), f"{PACKAGE} is not there: the law would pass on nothing"
    if complaints := dict.fromkeys(rule(PACKAGE)):
        pytest.fail("\n".join(complaints), pytrace=False)


def test_imports_go_down():
    obey(imports_go_down)


def test_every_room_is_listed():
    obey(every_room_is_listed)


def test_packages_stay_in_their_rooms():
    obey(packages_stay_in_their_rooms)


def test_heavy_packages_are_lazy():
    obey(heavy_packages_are_lazy)


def test_files_are_short():
    obey(files_are_short)


def test_functions_are_short():
    obey(functions_are_short)


def test_names_say_something():
    obey(names_say_something)


def test_files_have_docstrings():
    obey(files_have_docstrings)


LONG_FUNCTION = '"""A."""\ndef f():\n    """D.\n\n    E.\n    """\n' + "    x = 1\n" * MAX_FUNCTION
PLANTED = [
    (imports_go_down, "guide.py", "import amortax.train.run", "imports train (floor 4)"),
    (imports_go_down, "guide.py", "from amortax import train", "imports train (floor 4)"),
    (imports_go_down, "guide.py", "from . import train", "imports train (floor 4)"),
    (imports_go_down, "joint/deep/probe.py", "from ...guide import Guide", "imports guide (floor 2)"),
    (imports_go_down, "train/run.py", "def f():\n    from ..fitting import fit", "train/run.py:2: train (floor 4)"),
    (imports_go_down, "guide.py", "if TYPE_CHECKING:\n    from .fitting import Posterior", "imports fitting (floor 7)"),
    (imports_go_down, "joint/probe.py", "from ..data import Units", "its neighbour data"),
    (imports_go_down, "data/units.py", "from ..joint import Joint", "its neighbour joint"),
    (imports_go_down, "psis.py", "from .importance import weights", "stands after it on floor 5"),
    (imports_go_down, "_errors.py", "from ._types import Terms", "stands after it on floor 0"),
    (imports_go_down, "cli/app.py", "import amortax", "never from __init__.py"),
    (imports_go_down, "demo.py", "from amortax import __version__", "never from __init__.py"),
    (imports_go_down, "checks/gaps.py", "def f():\n    from ..train.run import run", "checks/gaps.py:2: checks takes"),
    (every_room_is_listed, "engine.py", "", "'engine' is on no floor; add it to FLOORS"),
    (every_room_is_listed, "engine/step.py", "", "'engine' is on no floor; add it to FLOORS"),
    (packages_stay_in_their_rooms, "guide.py", "import numpyro.distributions as dist", "numpyro is imported in"),
    (
        packages_stay_in_their_rooms,
        "fitting.py",
        "def f():\n    import optax",
        "optax is imported in ['refine', 'train'] only",
    ),
    (packages_stay_in_their_rooms, "cli.py", "def f():\n    import matplotlib.pyplot", "matplotlib is imported in"),
    (packages_stay_in_their_rooms, "fitting.py", "def f():\n    from pyarrow import csv", "pyarrow is imported in"),
    *(
        (heavy_packages_are_lazy, "interop.py", f"class A:\n    import {name}.part", f"interop.py:2: {name} is heavy")
        for name in LAZY
    ),
    (files_are_short, "fitting.py", "\n" * (MAX_FILE + 1), f"fitting.py: {MAX_FILE + 1} lines"),
    (functions_are_short, "fitting.py", LONG_FUNCTION, f"f has {MAX_FUNCTION + 1} lines"),
    (functions_are_short, "fitting.py", "class A:\n    async def f():\n" + "        x = 1\n" * 40, "f has 41 lines"),
    (names_say_something, "train/_utils.py", "", "a name that says nothing"),
    (names_say_something, "joint/helpers/probe.py", "", "a name that says nothing"),
    (files_have_docstrings, "fitting.py", "x = 1", "no module docstring"),
]
CLEAN = {
    "__init__.py": "import importlib\nfrom .cli import main",
    "joint/probe.py": "import numpyro\nfrom numpyro import handlers\nfrom .masks import mask\nfrom .. import _types",
    "data/table.py": "from amortax._types import Batch\ndef f():\n    import pyarrow",
    "plan.py": "from .guide import Guide\nfrom .joint.probe import probe",
    "train/run.py": "import optax\nfrom ..objectives import elbo",
    "checks/gaps.py": "from ..importance import weights",
    "interop.py": "import numpyro\nfrom .artifact import Posterior\ndef f():\n    import xarray, arviz",
    "plots.py": "import matplotlib.pyplot as plt",
    "cli/app.py": "import typer\nfrom ..demo import demo\ndef f():\n    import pyarrow, rich",
    "fitting.py": LONG_FUNCTION.removesuffix("    x = 1\n") + "\n" * (MAX_FILE - 45),
}


def build(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "amortax"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


@pytest.mark.parametrize(("rule", "file", "text", "complaint"), PLANTED, ids=[rule.__name__ for rule, *_ in PLANTED])
def test_a_planted_violation_is_caught(tmp_path, rule, file, text, complaint):
    [found] = rule(build(tmp_path, {"_types.py": '"""A."""', file: text}))
    assert found.startswith(file)
    assert complaint in found


RULES = sorted({rule for rule, *_ in PLANTED}, key=lambda rule: rule.__name__)


@pytest.mark.parametrize("rule", RULES)
def test_a_clean_tree_has_no_complaints(tmp_path, rule):
    documented = {name: text if text.startswith('"""') else f'"""A."""\n{text}' for name, text in CLEAN.items()}
    assert rule(build(tmp_path, documented)) == []
