"""What every test shares: type-checked annotations, a compilation cache that outlives the run, and the shared data."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# In the environment for processes that tests start, in the config for this one. The cache may be deleted at any time.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "amortax-tests"
for option, value in {
    "jax_compilation_cache_dir": str(CACHE),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    os.environ[option.upper()] = str(value)
    jax.config.update(option, value)

# Shapes and types are checked at every call, in tests only; AMORTAX_TYPECHECK=0 starts faster and says less.
if os.environ.get("AMORTAX_TYPECHECK", "1") != "0":
    install_import_hook("amortax", "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    # Two runs may meet in the cache, and the home folder may be read-only: that costs a compilation, not the test.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """Forgets compiled programs after each module: every one takes maps of memory, of which a process has 65,530."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and documents beside the repository; a test that asks for it is skipped without it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the shared data folder is not beside the repository: {folder}")
    return folder
