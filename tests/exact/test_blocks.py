"""Does a normal of blocks reach the posterior of a hierarchy of items, and at linear cost?

Persons with an intercept each answer every item, whose slope and intercept have means of their own:

    y_ij ~ N(theta_i + b_j + a_j x_i, 1),   a_j ~ N(mu_a, 1/2),   b_j ~ N(mu_b, 1/2).

All is Gaussian. Given (mu_a, mu_b) the precision of the items is that of pairs (a_j, b_j), minus one of rank two from
the persons' intercepts: `am.blocks(2)` holds the posterior, and without the two directions or the pairs it can't.
"""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import normal_kl
from jax.extend.core import jaxprs_in_params

import amortax as am
from amortax._types import Batch, trainable
from amortax.joint.joint import Joint
from amortax.objectives.base import Minibatch

PERSONS, ITEMS, SPREAD = 200, 30, 0.5


def hierarchy(x, y):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 2.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 2.0))
    item = numpyro.plate("item", y.shape[1], dim=-1)
    with item:
        a = numpyro.sample("a", dist.Normal(mu_a, SPREAD))
        b = numpyro.sample("b", dist.Normal(mu_b, SPREAD))
    with numpyro.plate("person", y.shape[0], dim=-2):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with item:
            numpyro.sample("y", dist.Normal(theta + b + a * x[:, None], 1.0), obs=y)


@functools.cache
def simulated():
    rng = np.random.default_rng(0)
    x, theta = 1.0 + rng.standard_normal(PERSONS), rng.standard_normal(PERSONS)
    a, b = 0.7 + SPREAD * rng.standard_normal(ITEMS), -1.0 + SPREAD * rng.standard_normal(ITEMS)
    y = theta[:, None] + b + a * x[:, None] + rng.standard_normal((PERSONS, ITEMS))
    return x.astype(np.float32), y.astype(np.float32)


def exact():
    """Mean and covariance of (mu_a, mu_b, a, b), in float64."""
    x, y = (np.asarray(values, np.float64) for values in simulated())
    away = np.zeros((2, ITEMS, 2 + 2 * ITEMS))  # a_j - mu_a and b_j - mu_b
    for which in range(2):
        away[which, :, 2 + which * ITEMS : 2 + (which + 1) * ITEMS] = np.eye(ITEMS)
        away[which, :, which] = -1.0
    away = away.reshape(2 * ITEMS, -1)
    precision = away.T @ away / SPREAD**2
    precision[:2, :2] += np.eye(2) / 2.0**2
    weight = np.linalg.inv(np.eye(ITEMS) + np.ones((ITEMS, ITEMS)))
    total = np.zeros(len(precision))
    for x_i, y_i in zip(x, y, strict=True):
        design = np.hstack([np.zeros((ITEMS, 2)), x_i * np.eye(ITEMS), np.eye(ITEMS)])
        precision += design.T @ weight @ design
        total += design.T @ weight @ y_i
    covariance = np.linalg.inv(precision)
    return covariance @ total, covariance


def q_of(family, num_steps=1000):
    """Mean and covariance of a trained q(v), read off the draws, which are affine in their noise."""
    x, y = simulated()
    data = {"x": x, "y": y}
    plan = am.amortize(hierarchy, data, plate="person", shared_family=family)
    guide = am.fit(plan, data, key=jax.random.key(0), num_steps=num_steps).guide
    size = guide.shared.family.noise_size
    at = eqx.filter_jit(jax.vmap(lambda noise: guide.place_shared(noise, 0)[0]))
    draws = np.asarray(at(jnp.concatenate([jnp.zeros((1, size)), jnp.eye(size)])), np.float64)
    factor = (draws[1:] - draws[0]).T
    return draws[0], factor @ factor.T


def test_blocks_reach_the_posterior_that_they_hold():
    mean, covariance = q_of(am.blocks(2))
    true_mean, true_covariance = exact()
    kl = float(normal_kl(mean, covariance, true_mean, true_covariance))
    ratio = np.sqrt(np.diag(covariance) / np.diag(true_covariance))
    off = np.abs(mean - true_mean) / np.sqrt(np.diag(true_covariance))
    print(f"KL {kl:.4f} nats over {len(mean)} globals, sd ratios {ratio[:2]} on top and ", end="")
    print(f"{ratio[2:].min():.3f} to {ratio[2:].max():.3f} below, worst mean {off.max():.3f} sd")
    assert kl <= 0.1
    assert np.all(np.abs(ratio - 1) <= 0.05)
    assert off.max() <= 0.1


def answers(item, correct, num_items=0):
    location = numpyro.sample("location", dist.Normal(0.0, 2.0))
    with numpyro.plate("item", num_items, dim=-1):
        slope = numpyro.sample("slope", dist.LogNormal(0.0, 0.3))
        difficulty = numpyro.sample("difficulty", dist.Normal(location, 1.0))
    with numpyro.plate("person", item.shape[0], dim=-2):
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
        with numpyro.plate("answer", item.shape[1], dim=-1):
            logits = slope[item] * (ability - difficulty[item])
            numpyro.sample("correct", dist.Bernoulli(logits=logits), obs=correct)


def largest_array(jaxpr):
    """Numbers in the largest array that a program makes, the programs inside it included."""
    found = 0
    for equation in jaxpr.eqns:
        found = max([found, *(v.aval.size for v in equation.outvars)])
        for inner in jaxprs_in_params(equation.params):
            found = max(found, largest_array(inner))
    return found


def step_program(num_items, family):
    """(the gradient of a bound of 300 persons, read as a program from shapes alone; free numbers of q(v))."""
    item = np.random.default_rng(0).integers(0, num_items, (300, 3)).astype(np.int32)
    data = {"item": item, "correct": item % 2}
    model = functools.partial(answers, num_items=num_items)
    plan = am.amortize(model, data, plate="person", shared_family=family)
    joint = Joint(model, plan.structure, {})
    arrays, rest = eqx.partition(plan.skeleton(), lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def gradient(arrays, batch, key):
        guide = eqx.combine(arrays, rest)
        params, others = eqx.partition(guide, trainable(guide))
        minibatch = Minibatch((batch,), jnp.asarray(1e5), jnp.zeros((), jnp.int32))
        return jax.grad(lambda p: am.ELBO()(key, eqx.combine(p, others), joint, minibatch).value)(params)

    free = sum(x.size for x in jax.tree.leaves(arrays.shared.family))
    return jax.make_jaxpr(gradient)(arrays, Batch(data, {}, {}), jax.random.key(0)).jaxpr, free


@pytest.mark.parametrize("curved", [False, True])
def test_a_step_makes_no_array_that_grows_faster_than_the_number_of_items(curved):
    """Neither globals by globals nor units by globals: most of it are the free numbers themselves."""
    num_items = 4000
    program, free = step_program(num_items, am.blocks(curved=curved))
    assert free == (23 if curved else 15) * num_items + (3 if curved else 2)
    assert largest_array(program) <= 1.2 * free


def many_kinds(x):
    numpyro.sample("top", dist.Normal(0.0, 1.0))
    numpyro.sample("wide", dist.Normal(0.0, 1.0).expand([100]).to_event(1))
    item, region = numpyro.plate("item", 4, dim=-1), numpyro.plate("region", 2, dim=-2)
    with item:
        numpyro.sample("pair", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
    with region, item:
        numpyro.sample("cell", dist.Normal(0.0, 1.0))
    with numpyro.plate("person", x.shape[0], dim=-3):
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, None, None])


def test_blocks_follow_sites_and_plates():
    """Two sites of an item are one block of 2 + 2 numbers; what is too wide for a block is taken number by number."""
    plan = am.amortize(many_kinds, {"x": np.arange(5.0, dtype=np.float32)}, plate="person", shared_family=am.blocks())
    assert plan.shared_family.layout == (
        ((), (), ()),
        ((), (100,), ()),
        (("item",), (4, 2), (0,)),
        (("item",), (4, 2), (0,)),
        (("region", "item"), (2, 4), (0, 1)),
    )
    family = plan.build(jax.random.key(0)).shared.family
    assert family.size == 1 + 100 + 8 + 8 + 8
    numbers = [np.asarray(group.take(jnp.arange(1.0 * family.size))) for group in family.groups]
    top, items, cells, wide = numbers
    assert top.tolist() == [[0]]
    assert items[:, 1].tolist() == [103, 104, 111, 112]  # both pairs of numbers of the second item
    assert cells.tolist() == [[117, 121, 118, 122, 119, 123, 120, 124]]  # plates in the order of their names
    assert wide.tolist() == [list(range(1, 101))]
    assert family._assemble([jnp.asarray(x) for x in numbers]).tolist() == list(range(family.size))
    again = am.Plan.from_json(json.loads(json.dumps(plan.to_json())), many_kinds)
    assert again.shared_family == plan.shared_family


def test_blocks_are_chosen_for_very_many_globals_and_say_what_they_miss():
    item = np.zeros((3, 2), np.int32)
    data = {"item": item, "correct": item}
    plan = am.amortize(functools.partial(answers, num_items=101), data, plate="person")
    assert isinstance(plan.shared_family, am.blocks)
    assert "blocks(rank=4, curved=False)" in str(plan)
    with pytest.raises(am.GuideError, match="needs the sites and plates of a model"):
        am.fit_density(np.eye(30, 3), am.blocks(), key=jax.random.key(0))
    with pytest.raises(am.GuideError, match="has 2 numbers but stands for 3"):
        am.blocks(layout=(((), (2,), ()),)).build(3, (), key=jax.random.key(0))
    with pytest.raises(am.GuideError, match="rank must be a whole number from 0"):
        am.blocks(-1, layout=(((), (3,), ()),)).build(3, (), key=jax.random.key(0))
