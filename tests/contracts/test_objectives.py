"""What does every objective promise, whatever the family? Finite numbers, and a gradient for all that it trains."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.intake import as_units, to_batch
from amortax.objectives.base import Minibatch
from amortax.train.groups import by_length
from amortax.train.initialise import initialise
from amortax.train.step import split_trainable

OBJECTIVES = (
    am.ELBO(2, kl_weight=am.warm_up(10, 0.5), free_bits=1e-3),
    am.IWELBO(3),
    am.Renyi(0.5, 3, num_shared_draws=1),
    am.ForwardKL(2),
    am.WakeSleep(3, wake_share=0.5),
    am.Sum(am.ELBO(), am.ForwardKL(), weights=(1.0, 0.5)),
)


def ragged(x):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    noise = numpyro.param("noise", 0.8, constraint=dist.constraints.positive)
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(mu, 1).expand([2]).to_event(1))
        with numpyro.plate("item", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(z[..., 0] + z[..., 1] ** 2, noise), obs=x)


@pytest.mark.slow
def test_on_ragged_units_with_missing_values_all_is_finite_and_all_is_trained():
    """With a family whose densities are dear; the others are in tests/exact."""
    family = am.iaf(2, width=4)
    rng = np.random.default_rng(2)
    data = {"x": [rng.standard_normal(n).astype(np.float32) for n in (1, 2, 2, 3, 1, 2, 2, 1, 40, 3)]}
    data["x"][3][1] = np.nan
    small = {"encoder": am.deep_set(width=4, depth=1), "head": am.concatenate(), "family": family}
    plan = am.amortize(ragged, data, plate="unit", **small)
    batch = to_batch(as_units(data, ragged, "unit"))
    params, rest = split_trainable(*initialise(plan, batch, jax.random.key(0)))
    groups = tuple(jax.tree.map(jnp.asarray, group) for group in by_length(batch))
    assert len(groups) > 1
    minibatch = Minibatch(groups, jnp.asarray(10.0), jnp.asarray(3))

    def loss(params, objective):
        joint, guide = eqx.combine(params, rest)
        found = objective(jax.random.key(1), guide, joint, minibatch)
        return found.value, found.elbo_per_unit

    for objective in OBJECTIVES:
        (value, elbo), gradient = jax.jit(lambda p, o=objective: jax.value_and_grad(loss, has_aux=True)(p, o))(params)
        assert np.isfinite(value), objective
        assert np.isfinite(elbo), objective
        for where, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            name = jax.tree_util.keystr(where)
            assert np.all(np.isfinite(leaf)), (objective, name)
            others = "params" in name or ".shared" in name
            assert np.any(leaf) == (objective.trains_all or not others), (objective, name)
