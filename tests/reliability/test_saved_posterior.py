"""A saved posterior answers with the same bits elsewhere, and is refused where anything differs."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import eqx_module

import amortax as am
from amortax.artifact import read_artifact, write_artifact

SOURCE = """
import equinox as eqx, jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.contrib.module import eqx_module

def decoder(x, spread=1.0):
    network = eqx_module("network", eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(5)))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, spread).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(jax.vmap(network)(z), 0.5).to_event(1), obs=x)
"""
X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
DATA = {"x": X}
NEW = {"x": X[:3] + 0.5}


def decoder(x):
    network = eqx_module("network", eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(5)))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(jax.vmap(network)(z), 0.5).to_event(1), obs=x)


def other_support(x):
    network = eqx_module("network", eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(5)))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.HalfNormal(1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(jax.vmap(network)(z), 0.5).to_event(1), obs=x)


def other_size(x):
    network = eqx_module("network", eqx.nn.MLP(2, 3, 5, 1, key=jax.random.key(5)))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(jax.vmap(network)(z), 0.5).to_event(1), obs=x)


def other_site(x):
    network = eqx_module("network", eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(5)))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        w = numpyro.sample("w", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(jax.vmap(network)(z) + w[:, None], 0.5).to_event(1), obs=x)


def no_network(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z[:, :1] + jnp.zeros(3), 0.5).to_event(1), obs=x)


@functools.cache
def trained():
    plan = am.amortize(decoder, DATA, plate="unit", encoder=am.dense(width=8, depth=1))
    return am.fit(plan, DATA, key=jax.random.key(0), num_steps=5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "posterior.amx"
    trained().save(path)
    return path


@pytest.fixture
def path(saved, tmp_path):
    """A copy that may be broken."""
    return Path(shutil.copy(saved, tmp_path / "posterior.amx"))


@pytest.fixture
def unchecked():
    """As for a user: without the type checks that only tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def answers(posterior):
    """Bits of draws and densities."""
    draws = posterior.sample(NEW, num_samples=4, key=jax.random.key(1))
    terms = posterior.log_prob(draws, NEW)
    parts = (draws["z"].values, terms.unit, terms.shared, posterior.encode(NEW))
    return [np.asarray(x).tobytes().hex() for x in parts]


def test_a_loaded_posterior_answers_with_the_same_bits(saved):
    posterior = trained()
    loaded = am.load(saved, model=decoder)
    assert answers(loaded) == answers(posterior)
    assert loaded.record == posterior.record
    assert str(loaded) == str(posterior)
    left, right = (jax.tree.leaves(eqx.filter((p.joint.params, p.guide), eqx.is_array)) for p in (posterior, loaded))
    assert len(left) == len(right) > 10
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_loaded_posterior_is_saved_as_the_same_bytes_and_trains_on(saved, tmp_path):
    loaded = am.load(saved, model=decoder)
    loaded.save(tmp_path / "again.amx")
    assert (tmp_path / "again.amx").read_bytes() == saved.read_bytes()
    assert am.fit(loaded, DATA, key=jax.random.key(2), num_steps=5).record.num_steps == 5


def test_a_fresh_process_answers_with_the_same_bits_and_imports_nothing_for_it(saved, tmp_path):
    (tmp_path / "own_model.py").write_text(SOURCE)
    script = (
        "import sys, json, jax, numpy as np, amortax as am\n"
        "from own_model import decoder\n"
        f"X = np.frombuffer(bytes.fromhex({NEW['x'].tobytes().hex()!r}), np.float32).reshape(3, 3)\n"
        "import amortax.posterior, amortax.cli\n"
        f"posterior = am.load({str(saved)!r}, model=decoder)\n"
        "draws = posterior.sample({'x': X}, num_samples=4, key=jax.random.key(1))\n"
        "terms = posterior.log_prob(draws, {'x': X})\n"
        "parts = (draws['z'].values, terms.unit, terms.shared, posterior.encode({'x': X}))\n"
        "print(json.dumps([np.asarray(x).tobytes().hex() for x in parts]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert json.loads(run.stdout.splitlines()[-1]) == answers(trained())


# Refusals


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (other_support, "site 'z': stored .*'Real.*, this model has .*'Positive"),
        (other_site, "site 'w': stored none, this model has"),
        (no_network, r"parameters: stored \('network\$params',\), this model has \(\)"),
        (other_size, r"array .* has shape \(4, 2\), the model needs \(5, 2\)"),
        (lambda y: decoder(y), r"needs the arguments \['y'\]"),
    ],
)
def test_another_model_is_refused_and_the_difference_named(saved, model, match):
    with pytest.raises(am.ArtifactError, match=match) as caught:
        am.load(saved, model=model)
    assert str(saved) in str(caught.value)


def test_the_name_of_the_function_does_not_count(saved):
    def renamed(x):
        return decoder(x)

    assert answers(am.load(saved, model=renamed)) == answers(trained())


def rewritten(path, change):
    content, arrays = read_artifact(path)
    content, arrays = change(json.loads(json.dumps(content)), dict(arrays)) or (content, arrays)
    write_artifact(path, content, arrays)


def without(name):
    return lambda content, arrays: (content, {k: v for k, v in arrays.items() if k != name})


def test_missing_and_unknown_arrays_are_refused(path):
    names = sorted(read_artifact(path)[1])
    rewritten(path, without(names[3]))
    with pytest.raises(am.ArtifactError, match="not in both the file and the model") as caught:
        am.load(path, model=decoder)
    assert names[3].replace("'", "") in str(caught.value).replace("'", "").replace("\\", "")
    rewritten(path, lambda content, arrays: (content, {**arrays, names[3]: np.zeros(1), "extra": np.zeros(1)}))
    with pytest.raises(am.ArtifactError, match="extra"):
        am.load(path, model=decoder)


def test_an_array_of_another_type_is_refused(path):
    name = next(n for n, x in read_artifact(path)[1].items() if x.dtype == np.float32)
    rewritten(path, lambda content, arrays: (content, {**arrays, name: arrays[name].astype(np.float16)}))
    with pytest.raises(am.ArtifactError, match="float16"):
        am.load(path, model=decoder)


def test_a_flipped_byte_and_a_cut_are_refused(path):
    good = path.read_bytes()
    for position in (100, len(good) // 2, len(good) - 10):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(am.ArtifactError):
            am.load(path, model=decoder)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(am.ArtifactError):
        am.load(path, model=decoder)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["plan"]["recipes"].update(encoder={"recipe": "os.system"}),
        lambda spec: spec["plan"]["recipes"].update(encoder={"recipe": "dense", "command": "true"}),
        lambda spec: spec["plan"]["recipes"].update(encoder="os.system"),
        lambda spec: spec["plan"]["recipes"].update(encoder={"recipe": "full"}),
        lambda spec: spec["plan"]["recipes"].update(encoder={"recipe": "dense", "width": "8"}),
        lambda spec: spec["plan"]["recipes"].pop("encoder"),
        lambda spec: spec["plan"]["recipes"].update(other=None),
        lambda spec: spec["plan"]["structure"].pop("sites"),
        lambda spec: spec["plan"].pop("structure"),
        lambda spec: spec.pop("plan"),
        lambda spec: spec.pop("record"),
        lambda spec: spec["record"].pop("num_units"),
        lambda spec: spec["record"].update(trained_on="more than I say"),
        lambda spec: spec["record"].update(elbo_per_unit=["much"]),
        lambda spec: spec.update(record=[]),
        lambda spec: spec.update(after_load="os.system"),
        lambda spec: spec["plan"].update(probed=False),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_forged_description_is_refused_and_runs_nothing(path, change):
    def forge(content, arrays):
        change(content)
        return content, arrays

    rewritten(path, forge)
    modules = set(sys.modules)
    with pytest.raises(am.ArtifactError) as caught:
        am.load(path, model=decoder)
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)
    assert set(sys.modules) == modules


# Saving


def test_a_save_that_fails_leaves_the_old_file_and_no_other(path, monkeypatch):
    before, folder = path.read_bytes(), path.parent

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for target in (path, folder / "new.amx"):
        with pytest.raises(am.ArtifactError, match="No space left on device"):
            trained().save(target)
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]
    monkeypatch.undo()
    with pytest.raises(am.ArtifactError, match="can't be written"):
        trained().save(folder / "no such folder" / "a.amx")
    trained().save(path)
    assert path.read_bytes() == before
