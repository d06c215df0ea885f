"""Plates within plates: a Gaussian hierarchy of three levels, whose posterior is known for any number of children."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.intake import conform, to_batch
from amortax.interop import values_of
from amortax.joint.tree import Level, Place, Tree
from amortax.objectives.base import Minibatch
from amortax.objectives.forward import simulated_loss
from amortax.pairs import with_latents
from amortax.train.groups import by_length
from amortax.train.initialise import initialise
from amortax.tree_frame import newton_frame

TAU, SPREAD, NOISE = 2.0, 1.0, 0.5  # of schools, of classes within a school, of pupils within a class


def schools(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    with numpyro.plate("school", y.shape[0], dim=-3):
        level = numpyro.sample("level", dist.Normal(mean, TAU))
        with numpyro.plate("class", y.shape[1], dim=-2):
            own = numpyro.sample("own", dist.Normal(level, SPREAD))
            with numpyro.plate("pupil", y.shape[2], dim=-1):
                numpyro.sample("y", dist.Normal(own, NOISE), obs=y)


def some_schools(count, classes, seed, pupils=4):
    """A list of (classes of the school, pupils) with some pupils missing."""
    rng = np.random.default_rng(seed)
    found = []
    for level in 1.0 + TAU * rng.normal(size=count):
        own = level + SPREAD * rng.normal(size=int(rng.integers(*classes)))
        y = own[:, None] + NOISE * rng.normal(size=(len(own), pupils))
        y[rng.random(y.shape) < 0.2] = np.nan
        y[0, 0] = level
        found.append(y)
    return found


def exact_unit(y):
    """(matrix, vector, covariance): the posterior mean of (level, own of every class) is matrix @ (mean, 1)."""
    size = 1 + len(y)
    precision, linear = np.zeros((size, size)), np.zeros((size, 2))
    precision[0, 0] = 1 / TAU**2 + len(y) / SPREAD**2
    linear[0, 0] = 1 / TAU**2
    for j, pupils in enumerate(y):
        seen = pupils[~np.isnan(pupils)]
        precision[1 + j, 1 + j] = 1 / SPREAD**2 + len(seen) / NOISE**2
        precision[0, 1 + j] = precision[1 + j, 0] = -1 / SPREAD**2
        linear[1 + j, 1] = seen.sum() / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ linear, covariance


def exact_mean(data):
    """(mean, sd) of the posterior of the global."""
    precision, linear = 1 / 25.0, 0.0
    for y in data:
        rows, columns = np.nonzero(~np.isnan(y))
        covariance = TAU**2 + SPREAD**2 * (rows[:, None] == rows) + NOISE**2 * np.eye(len(rows))
        weights = np.linalg.solve(covariance, np.ones(len(rows)))
        precision, linear = precision + weights.sum(), linear + weights @ y[rows, columns]
    return linear / precision, precision**-0.5


@pytest.fixture(scope="module")
def trained():
    data = some_schools(120, (2, 6), seed=0)
    plan = am.amortize(schools, {"y": data}, plate="school")
    return am.fit(plan, {"y": data}, key=jax.random.key(0), num_steps=300), data


@functools.partial(eqx.filter_jit)
def drawn(posterior, batch, shared, keys):
    """Locals (draws, units, d) and their log q."""
    contexts = posterior.guide.encode(batch)
    sample = jax.vmap(posterior.guide.sample_local, in_axes=(0, 0, None, 0, None))
    units = jax.tree.leaves(batch)[0].shape[0]
    return jax.lax.map(lambda k: sample(jax.random.split(k, units), contexts, shared, batch, posterior.joint), keys)


def divergences(posterior, data, mean):
    """KL(q || p) of every unit's locals given the global, in nats, by 400 draws."""
    batch = jax.tree.map(jnp.asarray, to_batch(conform({"y": data}, posterior.joint)))
    keys = jax.random.split(jax.random.key(1), 400)
    local, log_q = (np.asarray(x, np.float64) for x in drawn(posterior, batch, jnp.array([mean]), keys))
    found = []
    for i, y in enumerate(data):
        weights, covariance = exact_unit(y)
        away = local[:, i, : 1 + len(y)] - weights @ np.array([mean, 1.0])
        log_p = -0.5 * np.einsum("si,ij,sj->s", away, np.linalg.inv(covariance), away)
        log_p -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        found.append(np.mean(log_q[:, i] - log_p))
    return np.array(found)


def test_the_posterior_of_three_levels_is_exact(trained):
    posterior, data = trained
    mean, sd = exact_mean(data)
    draws = posterior.sample({"y": data}, num_samples=2000, key=jax.random.key(2))
    assert abs(float(draws["mean"].mean()) - mean) < 0.1 * sd
    assert abs(float(draws["mean"].std()) / sd - 1) < 0.08  # five standard errors of a standard deviation
    found = np.mean(divergences(posterior, data, mean))
    print(f"mean KL of a school {found:.5f} nats")
    assert found < 0.001


def test_twice_the_children_need_no_training(trained):
    """Ten to twenty classes of up to eight pupils, where two to five of four were trained on."""
    posterior, data = trained
    mean, _ = exact_mean(data)
    more = [[own[~np.isnan(own)] for own in y] for y in some_schools(40, (10, 21), seed=3, pupils=8)]
    found = np.mean(divergences(posterior, more, mean))
    print(f"mean KL of a school with 10 to 20 classes {found:.5f} nats")
    assert found < 0.001
    draws = posterior.sample({"y": more}, num_samples=50, key=jax.random.key(4))
    lengths = [len(y) for y in more]
    assert draws["own"].shape == (50, 40, max(lengths))
    assert [int(n) for n in np.isfinite(draws["own"][0]).sum(axis=1)] == lengths


def test_an_answer_does_not_change_with_what_others_are_padded_to(trained):
    """Up to float32 sums of another order, where the posterior's sds are 0.2 to 0.6."""
    posterior, data = trained
    alone = posterior.sample({"y": data[:3]}, num_samples=20, key=jax.random.key(5))
    long = some_schools(1, (19, 20), seed=6)
    among = posterior.sample({"y": [*data[:3], *long]}, num_samples=20, key=jax.random.key(5))
    for i, y in enumerate(data[:3]):
        np.testing.assert_allclose(alone["own"][:, i, : len(y)], among["own"][:, i, : len(y)], atol=5e-4)
        np.testing.assert_allclose(alone["level"][:, i], among["level"][:, i], atol=5e-4)


def test_the_density_is_that_of_the_draws(trained):
    posterior, data = trained
    mean, _ = exact_mean(data)
    batch = jax.tree.map(jnp.asarray, to_batch(conform({"y": data[:5]}, posterior.joint)))
    local, log_q = drawn(posterior, batch, jnp.array([mean]), jax.random.split(jax.random.key(7), 3))
    values = {"mean": np.float32(mean), "level": local[0, :, 0], "own": local[0, :, 1:]}
    terms = posterior.log_prob(values, {"y": data[:5]})
    np.testing.assert_allclose(terms.unit, log_q[0], atol=2e-4)


def test_a_saved_posterior_answers_alike_for_longer_units(trained, tmp_path):
    posterior, data = trained
    posterior.save(tmp_path / "schools.amx")
    again = am.load(tmp_path / "schools.amx", schools)
    more = {"y": some_schools(4, (8, 12), seed=8)}
    first, second = (p.sample(more, num_samples=5, key=jax.random.key(9)) for p in (posterior, again))
    assert first.identical(second)


def test_a_school_without_classes_has_the_prior(trained):
    posterior, data = trained
    draws = posterior.sample({"y": [np.zeros((0, 4)), data[0]]}, num_samples=2000, key=jax.random.key(10))
    assert not np.isfinite(draws["own"][:, 0]).any()
    away = draws["level"][:, 0] - draws["mean"]
    assert abs(float(away.mean())) < 5 * TAU / 2000**0.5
    assert abs(float(away.std()) / TAU - 1) < 5 / (2 * 2000) ** 0.5


def test_prediction_elsewhere_is_of_the_same_classes(trained):
    posterior, data = trained
    found = posterior.predict({"y": data[:3]}, at={"y": data[:3]}, num_samples=2, key=jax.random.key(11))
    assert found["y"].shape[:2] == (2, 3)
    other = [data[0], data[1], np.ones((9, 4))]
    with pytest.raises(am.DataError, match="elements have latents of their own"):
        posterior.predict({"y": data[:3]}, at={"y": other}, num_samples=2, key=jax.random.key(11))


def test_simulated_schools_cost_the_entropy_of_their_posteriors(trained):
    """-log q of what was simulated has that mean where q is exact, and variance d/2 for d numbers."""
    posterior, data = trained
    batch, count = jax.tree.map(jnp.asarray, to_batch(conform({"y": data}, posterior.joint))), 20
    minibatch = Minibatch((batch,), jnp.asarray(120.0), jnp.asarray(0))
    loss = eqx.filter_jit(simulated_loss)(jax.random.key(12), posterior.guide, posterior.joint, minibatch, count=count)
    covariances = [exact_unit(y)[1] for y in data]
    entropy = np.mean([0.5 * np.linalg.slogdet(2 * np.pi * np.e * c)[1] for c in covariances])
    error = np.sqrt(sum(len(c) / 2 for c in covariances) / count) / len(data)
    print(f"loss {loss:.4f}, entropy {entropy:.4f}, standard error {error:.4f}")
    assert abs(float(loss) - entropy) < 5 * error + 0.001


def test_units_of_any_number_of_elements_have_no_one_context(trained):
    posterior, data = trained
    with pytest.raises(am.GuideError, match="plate 'school' have a context for each of their elements"):
        posterior.encode({"y": data})


def elements_first(x, y):
    with numpyro.plate("element", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.3), obs=x)
    numpyro.sample("y", dist.Normal(numpyro.sample("w", dist.Normal(0.0, 1.0)), 0.3), obs=y)


def test_pairs_of_ragged_data_sets_cost_the_same_in_groups_by_length():
    """Latents stand as in the longest data set; cut by group, `w` would be read where another's `z` stands."""
    like = [{"x": np.zeros(n), "y": 0.0} for n in [1] * 20 + [8] * 4]
    plan = am.amortize(elements_first, like, plate=None)
    latents, data = am.simulate(plan, 24, key=jax.random.key(0), like=like)
    joint, guide = initialise(plan, to_batch(data), jax.random.key(0))
    batch = dataclasses.replace(to_batch(data), latents=with_latents(latents, data, joint))

    @eqx.filter_jit
    def loss(groups):
        return simulated_loss(
            jax.random.key(0), guide, joint, Minibatch(groups, jnp.array(24.0), jnp.array(0)), count=1
        )

    together, grouped = (loss(jax.tree.map(jnp.asarray, groups)) for groups in ((batch,), by_length(batch)))
    np.testing.assert_allclose(grouped, together, rtol=1e-5)


def pupils(y):
    with numpyro.plate("school", y.shape[0], dim=-3):
        level = numpyro.sample("level", dist.Normal(0.0, TAU))
        with numpyro.plate("class", y.shape[1], dim=-2), numpyro.plate("pupil", y.shape[2], dim=-1):
            ability = numpyro.sample("ability", dist.Normal(level, SPREAD))
            numpyro.sample("y", dist.Normal(ability, NOISE), obs=y)


def test_values_have_as_many_pupils_as_the_data_not_as_training_had():
    y = [[[0.1, 0.2], [0.3]], [[0.4]], [[0.5, 0.6]]]
    structure = am.amortize(pupils, {"y": y}, plate="school").structure
    values = {"level": np.zeros(2), "ability": np.zeros((2, 5, 7))}
    assert values_of(structure, values, np.arange(2))[0]["ability"].shape == (1, 2, 5, 7)


def random_tree(seed):
    """A tree of three levels with siblings, and a precision matrix of its shape."""

    def level(names, grid, start, width, axes, ancestors):
        return Level(frozenset(names), grid, (Place(start, (*grid, width), axes),), ancestors)

    tree = Tree(
        ("class", "pupil"),
        (
            level([], (1, 1), 0, 2, (None, None), ()),
            level(["class"], (3, 1), 2, 1, (0, None), (0,)),
            level(["class", "pupil"], (3, 2), 5, 2, (0, 1), (0, 1)),
        ),
    )
    rng = np.random.default_rng(seed)
    matrix = np.diag(rng.uniform(6, 9, size=17))
    for j in range(3):
        own = [2 + j]
        couple(matrix, [0, 1], own, rng)
        for k in range(2):
            pupil = [5 + 4 * j + 2 * k, 6 + 4 * j + 2 * k]
            couple(matrix, [0, 1], pupil, rng)
            couple(matrix, own, pupil, rng)
            couple(matrix, pupil[:1], pupil[1:], rng)
    return tree, matrix, rng.normal(size=17)


def couple(matrix, first, second, rng):
    block = 0.6 * rng.normal(size=(len(first), len(second)))
    matrix[np.ix_(first, second)] = block
    matrix[np.ix_(second, first)] = block.T


@pytest.mark.parametrize("seed", [0, 1])
def test_the_frame_of_a_tree_is_that_of_the_whole_matrix(seed):
    tree, precision, linear = random_tree(seed)

    def density(parts):
        x = tree.join(parts)
        return linear @ x - 0.5 * x @ jnp.asarray(precision, jnp.float32) @ x

    @jax.jit
    def placed(start, noise):
        zeros = [jnp.zeros(tree.shape(i)) for i in range(3)]
        ones, masks = [jnp.ones_like(x) for x in zeros], [jnp.ones(x.shape[:-1], bool) for x in zeros]
        frame, _, _ = newton_frame(tree, density, tree.of_levels(start), (zeros, ones), masks)
        jacobian = jax.jacobian(frame.place)(noise)
        return frame.place(jnp.zeros(17)), jacobian, frame.take(frame.place(noise)), frame.log_det

    rng = np.random.default_rng(seed)
    noise = rng.normal(size=17).astype(np.float32)
    center, jacobian, again, log_det = placed(rng.normal(size=17).astype(np.float32), noise)
    np.testing.assert_allclose(center, np.linalg.solve(precision, linear), atol=1e-5)
    np.testing.assert_allclose(jacobian @ jacobian.T, np.linalg.inv(precision), atol=1e-5)
    np.testing.assert_allclose(again, noise, atol=1e-5)
    assert float(log_det) == pytest.approx(-0.5 * np.linalg.slogdet(precision)[1], abs=1e-4)


def beside(y, z):
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("unit", y.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("first", y.shape[1], dim=-1):
            own = numpyro.sample("own", dist.Normal(level, spread))
            numpyro.sample("y", dist.Normal(own, NOISE), obs=y)
        with numpyro.plate("second", z.shape[1], dim=-1):
            other = numpyro.sample("other", dist.Normal(level, 1.0))
            numpyro.sample("z", dist.Normal(other, NOISE), obs=z)


def over_both(y, z, *, crossing=False):
    """Elements of two plates, and of both together, which hear of the first: of the second too if `crossing`."""
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    first, second = numpyro.plate("first", y.shape[1], dim=-2), numpyro.plate("second", y.shape[2], dim=-1)
    with numpyro.plate("unit", y.shape[0], dim=-3):
        with first:
            own = numpyro.sample("own", dist.Normal(0.0, spread))
        with second:
            other = numpyro.sample("other", dist.Normal(0.0, 1.0))
            numpyro.sample("z", dist.Normal(other, NOISE), obs=z[:, None, :])
        with first, second:
            both = numpyro.sample("both", dist.Normal(own, 1.0))
            numpyro.sample("y", dist.Normal(both + other if crossing else both, NOISE), obs=y)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (beside, {"y": RNG.normal(size=(5, 6)), "z": RNG.normal(size=(5, 7))}),
        (over_both, {"y": RNG.normal(size=(5, 2, 3)), "z": RNG.normal(size=(5, 3))}),
    ],
)
def test_plates_beside_each_other_are_branches_of_one_tree(model, data):
    plan = am.amortize(model, data, plate="unit")
    assert isinstance(plan.family, am.nested)
    batch = to_batch(am.units(data))
    joint, guide = initialise(plan, batch, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch)
    unit, shared = jax.tree.map(lambda x: x[0], batch), jnp.array([-0.3])

    def log_p(u):
        return joint.unit_log_prob(u, shared, unit).unit

    @eqx.filter_jit
    def facts(guide):
        frame, _ = guide.frame_given(tuple(x[0] for x in guide.encode(batch)), shared, unit, joint)
        center = frame.place(jnp.zeros(joint.local_size))
        jacobian = jax.jacobian(frame.place)(jnp.zeros(joint.local_size))
        return jacobian, jax.grad(log_p)(center), jax.hessian(log_p)(center)

    jacobian, slope, hessian = (np.asarray(x, np.float64) for x in facts(guide))
    np.testing.assert_allclose(slope, 0.0, atol=1e-3)
    np.testing.assert_allclose(jacobian @ jacobian.T, np.linalg.inv(-hessian), atol=1e-4)


def test_latents_that_cross_through_those_of_both_plates_are_no_tree():
    data = {"y": RNG.normal(size=(5, 2, 3)), "z": RNG.normal(size=(5, 3))}
    model = functools.partial(over_both, crossing=True)
    assert isinstance(am.amortize(model, data, plate="unit").family, am.diagonal)
    with pytest.raises(am.GuideError, match=r"'both' ties latents \['own', 'other'\] of plates that cross"):
        am.amortize(model, data, plate="unit", family=am.nested())
