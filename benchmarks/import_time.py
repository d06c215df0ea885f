"""How much longer does `import amortax; amortax.fit` take than the NumPyro and Equinox that it stands on?

Each is timed inside a fresh interpreter, in alternation, so that the machine's drift touches both alike; the answer is
the ratio of the medians. One untimed round before fills the byte code and the file cache.

    python benchmarks/import_time.py
"""

import os
import statistics
import subprocess
import sys
import tempfile

ROUNDS = 7
CASES = {"numpyro + equinox": "import numpyro, equinox", "amortax, amortax.fit": "import amortax; amortax.fit"}
# An installed package has its byte code; where writing it is switched off, amortax alone would be compiled each time.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds(statement: str) -> float:
    """Wall seconds of `statement` in a fresh interpreter, its start-up not counted."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", TIMED.format(statement)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder, env=ENVIRONMENT)
    return float(done.stdout.split()[-1])


def main() -> None:
    rounds = [{name: seconds(statement) for name, statement in CASES.items()} for _ in range(ROUNDS + 1)][1:]
    medians = {name: statistics.median(times[name] for times in rounds) for name in CASES}
    for name, median in medians.items():
        span = sorted(times[name] for times in rounds)
        print(f"{name:22s} median {median:6.3f} s   ({span[0]:.3f} to {span[-1]:.3f}, {ROUNDS} fresh processes)")
    base, ours = medians.values()
    print(f"{'ratio':22s}        {ours / base:6.3f}")


if __name__ == "__main__":
    main()
