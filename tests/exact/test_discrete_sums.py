"""Discrete latents are summed exactly: against every assignment of a unit written out, plates and elements included."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, log_density

from amortax._types import Batch
from amortax.intake import as_units, to_batch
from amortax.joint.joint import Joint
from amortax.joint.levels import levels_of
from amortax.joint.probe import probe
from amortax.joint.read import read

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=4).astype(np.float32)
TABLE = RNG.normal(size=(3, 3)).astype(np.float32)
CUBE = RNG.normal(size=(3, 2, 2)).astype(np.float32)
RAGGED = [RNG.normal(size=n).astype(np.float32) for n in (1, 4, 2)]
MEANS = jnp.array([-1.0, 0.3, 2.0])


def two_sites(y):  # of the unit, one a sum of coins, the other an event of three
    with numpyro.plate("u", y.shape[0]):
        n = numpyro.sample("n", dist.Binomial(2, 0.3))
        on = numpyro.sample("on", dist.Bernoulli(jnp.array([0.2, 0.5, 0.9])).to_event(1))
        numpyro.sample("y", dist.Normal(n + on @ MEANS, 0.7), obs=y)


def class_of_element(y):  # a class per element of a ragged plate, whose shares hang on the unit
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            c = numpyro.sample("c", dist.Categorical(logits=z[..., None] * jnp.arange(3.0)))
            numpyro.sample("y", dist.Normal(MEANS[c], 0.7), obs=y)


def three_levels(y):  # of the unit, of an element, of a part of it
    with numpyro.plate("u", y.shape[0], dim=-3):
        a = numpyro.sample("a", dist.Bernoulli(0.3))
        with numpyro.plate("e", y.shape[1], dim=-2):
            b = numpyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
            numpyro.sample("seen", dist.Normal(b, 1.0), obs=y.sum(-1, keepdims=True))
            with numpyro.plate("p", y.shape[2], dim=-1):
                w = numpyro.sample("w", dist.LogNormal(b, 1.0))
                c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
                numpyro.sample("y", dist.Normal(MEANS[c] + a * b + w, 0.7), obs=y)


def neighbours(x, y):  # two plates side by side, and units last
    v = numpyro.sample("v", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", y.shape[1], dim=-1):
        a = numpyro.sample("a", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        with numpyro.plate("e", x.shape[0], dim=-2):
            b = numpyro.sample("b", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(b + v, 1.0 + a), obs=x)
        with numpyro.plate("f", y.shape[0], dim=-2):
            d = numpyro.sample("d", dist.Categorical(jnp.array([0.1, 0.4, 0.5])))
            numpyro.sample("y", dist.Normal(MEANS[d] * a, 1.0), obs=y)


def bounds_by_choice(y):  # the support of a number hangs on a choice
    with numpyro.plate("u", y.shape[0]):
        c = numpyro.sample("c", dist.DiscreteUniform(1, 3))
        z = numpyro.sample("z", dist.Uniform(0.0, c))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


CASES = [
    (two_sites, {"y": FLAT}, (24,)),
    (class_of_element, {"y": RAGGED}, (1, 3)),
    (three_levels, {"y": CUBE}, (2, 2, 3)),
    (neighbours, {"x": TABLE.T[:2], "y": TABLE.T}, (3, 2, 3)),
    (bounds_by_choice, {"y": FLAT}, (3,)),
]
IDS = [model.__name__ for model, *_ in CASES]


def joint_of(model, data):
    found = as_units(data, model, "u")
    batch = to_batch(found)
    structure = probe(model, read(model, batch, found.axes, "u"), batch, {}, jax.random.key(0))
    return Joint(model, structure, {}), batch


def own(joint, batch, index):
    """The arguments of one unit in the model's layout, without padding, and its one-unit batch."""
    unit = jax.tree.map(lambda x: jnp.asarray(x[index]), batch)
    cut = {n: x[: batch.lengths[n][index]] if n in batch.lengths else x for n, x in unit.arrays.items()}
    return {a.name: jnp.expand_dims(cut[a.name], a.axis) for a in joint.structure.arguments}, unit


def written_out(joint, arguments, local, shared):
    """Every assignment of a unit's discrete sites and its log density by NumPyro, at given numbers."""
    records = handlers.trace(handlers.seed(joint.model, 0)).get_trace(**arguments)
    sites = [(s.name, s.choices, np.shape(records[s.name]["value"])) for s in joint.structure.of("discrete")]
    counts = [int(np.prod(shape)) for _, _, shape in sites]
    options = [choices for (_, choices, _), n in zip(sites, counts, strict=True) for _ in range(n)]
    every = np.array(list(itertools.product(*options)))
    parts = np.split(every, np.cumsum(counts)[:-1], axis=1)
    values = {name: part.reshape(-1, *shape) for (name, _, shape), part in zip(sites, parts, strict=True)}

    free = joint.structure.unpack("local", local) | joint.structure.unpack("global", shared)

    def one(chosen):
        placed = handlers.substitute(handlers.seed(joint.model, 0), data=chosen)
        numbers = constrain_fn(placed, (), arguments, free)
        density, trace = log_density(placed, (), arguments, numbers)
        for name, u in free.items():
            transform = biject_to(trace[name]["fn"].support)
            density += jnp.sum(transform.log_abs_det_jacobian(u, transform(u)))
        return density

    return values, np.asarray(jax.jit(jax.vmap(one))(values), np.float64)


def numbers_of(joint, seed=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=joint.local_size)), jnp.asarray(rng.normal(size=joint.shared_size))


@pytest.mark.parametrize(("model", "data", "sizes"), CASES, ids=IDS)
def test_the_density_is_the_sum_over_every_assignment(model, data, sizes):
    joint, batch = joint_of(model, data)
    assert tuple(level.size for level in levels_of(joint.structure)) == sizes
    local, shared = numbers_of(joint)
    terms = jax.jit(jax.vmap(joint.unit_log_prob, in_axes=(None, None, 0)))(local, shared, batch)
    for index in range(len(terms.unit)):
        _, each = written_out(joint, own(joint, batch, index)[0], local, shared)
        np.testing.assert_allclose(terms.unit[index] + terms.shared[index], np.logaddexp.reduce(each), rtol=2e-6)


@pytest.mark.parametrize(("model", "data"), [case[:2] for case in CASES[1:4]], ids=IDS[1:4])
def test_choices_have_their_exact_conditional_probabilities(model, data):
    joint, batch = joint_of(model, data)
    local, shared = numbers_of(joint)
    arguments, unit = own(joint, batch, 2)
    values, each = written_out(joint, arguments, local, shared)
    exact = np.exp(each - np.logaddexp.reduce(each))
    padded = {n: _padded(joint, n, x, unit) for n, x in values.items()}
    log_choice = jax.jit(jax.vmap(joint.log_choice, in_axes=(0, None, None, None)))(padded, local, shared, unit)
    np.testing.assert_allclose(np.exp(log_choice), exact, atol=2e-6)

    count = 20_000
    keys = jax.random.split(jax.random.key(1), count)
    drawn = jax.jit(jax.vmap(joint.choose, in_axes=(0, None, None, None)))(keys, local, shared, unit)
    for name, every in values.items():
        flat = every.reshape(len(every), -1).astype(np.float64)
        found = np.asarray(drawn[name], np.float64)[..., : every.shape[-1]].reshape(count, -1)
        for i, j in itertools.product(range(flat.shape[1]), repeat=2):  # second moments, each with its own error
            mean, square = exact @ (flat[:, i] * flat[:, j]), exact @ (flat[:, i] * flat[:, j]) ** 2
            error = 5 * np.sqrt(max(square - mean**2, 1e-6) / count)
            assert abs((found[:, i] * found[:, j]).mean() - mean) <= error, name


def _padded(joint, name, value, unit):
    """Values of a ragged site up to the padded length: what stands there must not matter."""
    site = next(s for s in joint.structure.sites if s.name == name)
    if "e" not in site.plates or not unit.lengths:
        return value
    size = unit.arrays["y"].shape[0]
    return np.concatenate([value, np.ones((*value.shape[:-1], size - value.shape[-1]), value.dtype)], axis=-1)


def test_padding_changes_nothing():
    joint, batch = joint_of(class_of_element, {"y": RAGGED})
    local, shared = numbers_of(joint)

    def longer(x, fill):
        return np.concatenate([x, np.full((3, 50), fill, x.dtype)], axis=1)

    padded = Batch(dict(batch.arrays), dict(batch.masks), batch.lengths)
    padded.arrays["y"], padded.masks["y"] = longer(batch.arrays["y"], 9.0), longer(batch.masks["y"], False)
    density = jax.value_and_grad(lambda u, x: joint.unit_log_prob(u, shared, x).unit)
    short, long = (jax.jit(jax.vmap(density, in_axes=(None, 0)))(local, b) for b in (batch, padded))
    np.testing.assert_allclose(long[0], short[0], rtol=1e-6)
    np.testing.assert_allclose(long[1], short[1], rtol=1e-5)
