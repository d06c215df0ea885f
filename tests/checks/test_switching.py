"""Are components without names found, whatever else has the same length, and a warning only where draws mix them?"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.checks.switching import candidates, component_axes, mixed_pairs, reasons, switching
from amortax.guide import Guide
from amortax.intake import as_units, conform, to_batch
from amortax.train.initialise import initialise

K, SIZE = 3, 2


def mixture(x):
    """Three components; three slopes of no relation to them."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("component", K):
        means = numpyro.sample("means", dist.Normal(0, 3).expand([SIZE]).to_event(1))
    slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([K]).to_event(1))
    with numpyro.plate("unit", x.shape[0]):
        c = numpyro.sample("c", dist.Categorical(weights))
        z = numpyro.sample("z", dist.Normal(0, 1))
        shift = slopes[0] + 2 * slopes[1] * z + 3 * slopes[2] * z**2
        numpyro.sample("x", dist.Normal(means[c] + shift[:, None], 1).to_event(1), obs=x)


def ordered(x):
    means = numpyro.sample("means", dist.TransformedDistribution(dist.Normal(0, 3).expand([K]).to_event(1), ORDER))
    with numpyro.plate("unit", x.shape[0]):
        c = numpyro.sample("c", dist.Categorical(jnp.ones(K) / K))
        numpyro.sample("x", dist.Normal(means[c], 1), obs=x)


def items(x):
    """As many item difficulties, which the data tell apart."""
    difficulty = numpyro.sample("difficulty", dist.Normal(0, 1).expand([K]).to_event(1))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z[:, None] - difficulty, 1).to_event(1), obs=x)


ORDER = dist.transforms.OrderedTransform()


def read(model, x):
    units = as_units({"x": x}, model, "unit")
    joint, guide = initialise(am.amortize(model, units, plate="unit"), to_batch(units), jax.random.key(0))
    return joint, guide, conform(units, joint)


@pytest.fixture(scope="module")
def mixed():
    rng = np.random.default_rng(0)
    return read(mixture, rng.standard_normal((30, SIZE)).astype(np.float32))


class At(Guide):
    """q(v) is a narrow normal at `center`."""

    center: jax.Array = None
    base: Guide = None

    def encode(self, batch):
        return self.base.encode(batch)

    def sample_shared(self, key):
        return self.center + 0.05 * jax.random.normal(key, self.center.shape), jnp.zeros(())

    def sample_local(self, *args):
        return self.base.sample_local(*args)


def test_an_untrained_guide_mixes_the_components(mixed):
    joint, guide, units = mixed
    found, note = switching(joint, guide, units, key=jax.random.key(1))
    print(found)
    assert [r.code for r in found] == ["label-switching"]
    assert found[0].level == "WARN"
    assert "'means', 'weights' apart" in found[0].text
    assert note == ""


def test_a_guide_in_one_order_is_noted_without_a_warning(mixed):
    joint, guide, units = mixed
    structure = joint.structure
    free = {"weights": jnp.zeros(2), "means": jnp.arange(6.0).reshape(3, 2), "slopes": jnp.zeros(3)}
    center = structure.pack("global", {s.name: free[s.name].reshape(s.free_shape) for s in structure.of("global")})
    at = At(guide.shared, guide.local, guide.encoder, guide.head, guide.classifier, center, guide)
    found, note = switching(joint, at, units, key=jax.random.key(1))
    print(note)
    assert found == []
    assert note.startswith("the model does not tell the 3 elements of 'means', 'weights' apart; q is in one")


@pytest.mark.parametrize(("model", "shape"), [(ordered, (20,)), (items, (20, K))])
def test_elements_that_the_model_tells_apart_are_none(model, shape):
    joint, guide, units = read(model, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    assert len(component_axes(joint.structure)) == 1
    assert switching(joint, guide, units, key=jax.random.key(1)) == ([], "")


def test_sets_of_axes_go_from_large_to_small(mixed):
    axes = component_axes(mixed[0].structure)
    sets = [{axis.site for axis in group} for group in candidates(axes)]
    of_three = [names for names in sets if names <= {"weights", "means", "slopes"} and len(names) > 1]
    assert of_three[0] == {"weights", "means", "slopes"}
    assert {"weights", "means"} in of_three


def test_pairs_are_mixed_where_draws_cross():
    """Three components of one number: the first two cross in Φ(-1/√2) = 24% of draws, the third stands apart."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((20_000, 3, 1)) + np.array([0.0, 1.0, 20.0])[:, None]
    [(a, b, share)] = mixed_pairs(draws)
    assert (a, b) == (0, 1)
    assert abs(share - 0.2398) < 5 * np.sqrt(0.24 * 0.76 / 20_000)
    [found], _ = reasons(["m"], [(a, b, share)], 3)
    assert "24% of q's draws have elements 0 and 1 in the other order (limit 1%)" in found.text
