"""The probe finds what reading can't: mixing between units, use of padding, and whether elements are exchangeable."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from amortax import ModelError, units
from amortax.intake import to_batch
from amortax.joint.probe import initial_params, probe
from amortax.joint.read import read

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=5).astype(np.float32)
TABLE = RNG.normal(size=(5, 4)).astype(np.float32)
RAGGED = [RNG.normal(size=n).astype(np.float32) for n in (3, 1, 4, 2, 3)]


def probed(model, data):
    found = units(data, name="u")
    batch = to_batch(found)
    structure = read(model, batch, found.axes, "u")
    return probe(model, structure, batch, initial_params(model, structure, batch, jax.random.key(0)), jax.random.key(0))


def centred(x, y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z + x - x.mean(), 1.0), obs=y)


def neighbours(x, y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.roll(x, 1), 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def neighbouring_latents(x, y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(z + jnp.roll(z, 1), 1.0), obs=y)


def normalised(x, y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(x, 1.0))
        numpyro.factor("softmax", jax.nn.log_softmax(z))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def ranked(x, y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        numpyro.deterministic("relative", z - z.mean())


def scaled_by_hand(x, y):
    with numpyro.plate("u", y.shape[0]), numpyro.handlers.scale(scale=1.0 / y.shape[0]):
        z = numpyro.sample("z", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (centred, "y"),
        (neighbours, "z"),
        (neighbouring_latents, "y"),
        (normalised, "softmax"),
        (ranked, "relative"),
        (scaled_by_hand, "z"),
    ],
)
def test_what_mixes_units_is_refused_by_the_first_site_that_differs(model, site):
    with pytest.raises(ModelError, match=f"site '{site}' is not separable by unit: unit 0 has") as error:
        probed(model, {"x": FLAT, "y": FLAT})
    assert "units of plate 'u'" in str(error.value)
    rewrites = ("pass them as an argument per unit", "make units that are tied to each other one unit")
    assert any(rewrite in str(error.value) for rewrite in rewrites)


def nested(mean):
    def model(x, y):
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("e", y.shape[1], dim=-1):
                numpyro.sample("y", dist.Normal(mean(z, x, y), 1.0), obs=y)

    return model


@pytest.mark.parametrize(
    "mean",
    [
        lambda z, x, y: z + x - x.mean(axis=1, keepdims=True),
        lambda z, x, y: z + x.sum(axis=1, keepdims=True),
        lambda z, x, y: z + x[:, -1:],
        lambda z, x, y: z * jnp.roll(x, -1, axis=1),
        lambda z, x, y: z / x.shape[1],
    ],
    ids=["mean", "sum", "last", "next", "length"],
)
def test_what_reads_padding_is_refused(mean):
    with pytest.raises(ModelError, match="site 'y' changes with padding") as error:
        probed(nested(mean), {"x": RAGGED, "y": [x + 1 for x in RAGGED]})
    assert "compute that before and pass it as an argument per unit" in str(error.value)


def test_what_reads_padding_only_in_padding_passes():
    before = nested(lambda z, x, y: z * jnp.pad(x[:, :-1], ((0, 0), (1, 0))))
    assert not probed(before, {"x": RAGGED, "y": RAGGED}).plates[0].exchangeable


def per_element_global(x, y):
    with numpyro.plate("item", x.shape[1], dim=-1):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    nested(lambda z, x, y: z + b)(x, y)


def per_element_local(x, y):
    with numpyro.plate("u", y.shape[0], dim=-2), numpyro.plate("e", y.shape[1], dim=-1):
        w = numpyro.sample("w", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)


def on_a_ring(x, y):  # the same after any turn or reflection, but not after a shuffle
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("smooth", -((x - jnp.roll(x, 1, axis=1)) ** 2).sum(axis=1, keepdims=True))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "exchangeable"),
    [
        (nested(lambda z, x, y: z * x), True),
        (nested(lambda z, x, y: z * jnp.arange(4.0)), False),
        (nested(lambda z, x, y: z + jnp.cumsum(x, axis=1)), False),
        (per_element_global, False),
        (per_element_local, True),
        (on_a_ring, False),
    ],
    ids=["set", "position", "order", "per_element_global", "per_element_local", "ring"],
)
def test_elements_are_exchangeable_only_if_any_order_has_the_same_density(model, exchangeable):
    structure = probed(model, {"x": TABLE, "y": TABLE[::-1]})
    assert [(p.name, p.exchangeable) for p in structure.plates] == [("e", exchangeable)]
    assert not structure.plates[0].ragged


def test_ragged_sets_are_shuffled_within_their_own_length():
    structure = probed(nested(lambda z, x, y: z * x), {"x": RAGGED, "y": RAGGED})
    assert [(p.ragged, p.exchangeable, p.argument) for p in structure.plates] == [(True, True, "x")]
    assert {a.name: (a.plate, a.shape) for a in structure.arguments} == {"x": ("e", (None,)), "y": ("e", (None,))}


def test_exchangeability_is_probed_where_the_unit_axis_is_the_last():
    def model(x, y):
        with numpyro.plate("u", x.shape[1], dim=-1):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("e", x.shape[0], dim=-2):
                numpyro.sample("y", dist.Normal(z * x, 1.0), obs=y)

    found = units({"x": TABLE.T, "y": TABLE.T}, axes={"x": 1, "y": 1}, name="u")
    structure = probed(model, found)
    assert [(p.name, p.exchangeable) for p in structure.plates] == [("e", True)]
    assert {a.plate_axis for a in structure.arguments} == {0}


def test_a_missing_value_is_probed_wherever_it_is():
    data = np.abs(np.tile(TABLE, (3, 1)))
    data[11, 2] = np.nan

    def fooled(y):  # NaN becomes 0: seen as a value, whatever stands there
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("e", y.shape[1], dim=-1):
                numpyro.sample("b", dist.Normal(z, 1.0), obs=jnp.where(y > 0.0, y, 0.0))

    with pytest.raises(ModelError, match="site 'b' changes with padding, or with what stands in missing places"):
        probed(fooled, {"y": data})
