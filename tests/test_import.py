"""Importing amortax has no effect but its names: no configuration, handlers or warnings, and nothing heavy loaded."""

import json
import subprocess
import sys

import pytest

HEAVY = ["matplotlib", "xarray", "pyarrow", "typer", "rich", "arviz", "flowjax"]

# The packages that amortax stands on come first, so that what they do at import is not laid at our door.
SCRIPT = """
import json, logging, sys, warnings
import equinox, jax, numpyro, optax

def state():
    names = [None, *logging.root.manager.loggerDict]
    handlers = {str(name): [repr(handler) for handler in logging.getLogger(name).handlers] for name in names}
    return {
        "config": {name: repr(value) for name, value in jax.config.values.items()},
        "handlers": {name: found for name, found in handlers.items() if found},
        "modules": sorted(sys.modules),
    }

before = state()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import amortax
    imported = state()
    missing = {}
    for name in amortax.__all__:
        try:
            getattr(amortax, name)
        except Exception as error:
            missing[name] = repr(error)
    touched = state()
print(json.dumps({
    "before": before, "imported": imported, "touched": touched, "missing": missing,
    "names": list(amortax.__all__), "warnings": [str(warning.message) for warning in caught],
    "unlisted": sorted(set(amortax.__all__) - set(dir(amortax))),
}))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a fresh interpreter saw before and after `import amortax`, and after touching each public name."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path_factory.mktemp("import"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("moment", ["imported", "touched"])
def test_jax_config_is_untouched(report, moment):
    before, after = report["before"]["config"], report[moment]["config"]
    assert len(before) > 50, "jax.config.values no longer lists the configuration: this test would see nothing"
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("moment", ["imported", "touched"])
def test_no_logging_handlers(report, moment):
    assert report[moment]["handlers"] == report["before"]["handlers"]


def test_no_warnings(report):
    assert report["warnings"] == []


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_stay_unloaded(report, package):
    assert package not in set(report["imported"]["modules"]) - set(report["before"]["modules"])


def test_every_public_name_is_there(report):
    assert report["names"]
    assert report["missing"] == {}


def test_every_public_name_is_in_dir(report):
    assert report["unlisted"] == []


def test_no_public_name_is_listed_twice(report):
    assert len(report["names"]) == len(set(report["names"]))
