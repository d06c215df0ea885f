"""Would the tests see the classic bugs of this field? Plants them one by one and runs the tests that must then fail.

    python tests/mutations.py              all of them, about half a minute each
    python tests/mutations.py jacobian     those whose name contains a word

The package is copied, one place in the copy changed (`mutation_table.py`), and pytest run on the copy. A bug is caught
if tests failed, not if nothing could be run. `test_mutations.py` checks that each place is still in the source.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutation_table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
TEST_FAILED = 1  # pytest's exit code; others say that no test could be run


def plant(mutation: Mutation, folder: Path) -> None:
    """Copies the package into `folder`, with the bug."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    place = folder / "src" / "amortax" / mutation.file
    source = place.read_text()
    assert source.count(mutation.old) == 1, f"{mutation.name}: its place is {source.count(mutation.old)} times there"
    place.write_text(source.replace(mutation.old, mutation.new))


def is_caught(mutation: Mutation) -> bool:
    """Whether the tests fail on the planted bug; says what they said."""
    with tempfile.TemporaryDirectory() as folder:
        plant(mutation, Path(folder))
        started = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(Path(folder) / "src")}
        where = "import amortax; print(amortax.__file__)"
        seen = subprocess.run(
            [sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True
        )
        assert seen.stdout.startswith(folder), f"tests would run on {seen.stdout.strip()}"
        options = [
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            *(["-k", mutation.words] if mutation.words else []),
        ]
        command = [sys.executable, "-m", "pytest", *options, f"tests/{mutation.tests}"]
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    caught = found.returncode == TEST_FAILED
    failures = [line for line in found.stdout.splitlines() if line.startswith("FAILED")]
    said = failures[0] if failures else (found.stdout.strip().splitlines() or [found.stderr])[-1]
    seconds = time.perf_counter() - started
    print(f"{'caught' if caught else 'MISSED'} in {seconds:3.0f} s: {mutation.name}\n    {said[:160]}", flush=True)
    return caught


def main(words: list[str]) -> int:
    """Plants all bugs, or those that have one of the words in their names; 1 if one is missed."""
    chosen = [m for m in MUTATIONS if not words or any(word.lower() in m.name.lower() for word in words)]
    if not chosen:
        print(f"no mutation has {words} in its name; there are: {', '.join(m.name for m in MUTATIONS)}")
        return 2
    missed = [mutation.name for mutation in chosen if not is_caught(mutation)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
