"""Is a natural step with rate 1 the exact coordinate update of a conjugate model, and do short ones find the best q?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conjugate import shared_normal
from scipy import optimize, stats
from scipy.special import gammaln

import amortax as am
from amortax.intake import to_batch
from amortax.train.initialise import initialise, prior_whitening
from amortax.train.step import split_trainable

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(4.0, 60)
COINS = RNG.binomial(1, 0.3, 60)
KINDS = RNG.choice(4, 60, p=[0.1, 0.2, 0.3, 0.4])
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.1], np.float32)


def four_conjugates(count, coin, kind, x):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    share = numpyro.sample("share", dist.Beta(3.0, 2.0))
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.asarray(WEIGHTS)))
    mean = numpyro.sample("mean", dist.Normal(1.0, 10.0))
    with numpyro.plate("unit", count.shape[0]):
        numpyro.sample("count", dist.Poisson(rate), obs=count)
        numpyro.sample("coin", dist.Bernoulli(share), obs=coin)
        numpyro.sample("kind", dist.Categorical(shares), obs=kind)
        numpyro.sample("x", dist.Normal(mean, 2.0), obs=x)


def natural_fit(model, data, optimizer, family=None, **options):
    plan = am.amortize(model, data, plate="unit", shared_family=family or am.exponential_family())
    return am.fit(plan, data, key=jax.random.key(0), optimizer=optimizer, **options)


def test_one_step_is_the_exact_posterior_of_four_conjugate_models():
    data = {"count": COUNTS, "coin": COINS, "kind": KINDS, "x": RNG.normal(3.0, 2.0, 60).astype(np.float32)}
    posterior = natural_fit(four_conjugates, data, am.natural(1.0), num_steps=1)
    rate, share, shares, mean = posterior.guide.shared.family.blocks
    frame = jax.tree.map(np.asarray, posterior.guide.shared.whitening.value)
    found = [np.exp(rate.log_shape[0]), np.exp(rate.log_rate[0] - frame["center"][0])]
    np.testing.assert_allclose(found, [3 + COUNTS.sum(), 2 + 60], rtol=1e-4)
    found = np.exp(share.log_concentration[0])
    np.testing.assert_allclose(found, [3 + COINS.sum(), 2 + 60 - COINS.sum()], rtol=1e-4)
    found = np.exp(shares.log_concentration[0])
    np.testing.assert_allclose(found, WEIGHTS + np.bincount(KINDS, minlength=4), rtol=1e-4)
    precision = 1 / 100 + 60 / 4
    center, sd = (np.asarray(z)[0] for z in mean.mean_and_sd(()))
    center, sd = frame["center"][-1] + frame["scale"][-1] * center, frame["scale"][-1] * sd
    exact = (1 / 100 + data["x"].sum() / 4) / precision
    assert abs(center - exact) < 1e-4 * precision**-0.5
    assert sd == pytest.approx(precision**-0.5, rel=1e-4)


def regression(covariate, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("unit", y.shape[0]):
        numpyro.sample("y", dist.Normal(covariate @ slope, 0.5), obs=y)


@pytest.mark.parametrize("family", [am.full(), am.exponential_family()])
def test_one_step_is_the_exact_normal_of_a_regression(family):
    covariate = RNG.standard_normal((40, 3)) @ np.array([[1.0, 0.8, 0], [0, 0.6, 0], [0, 0.5, 1]])
    y = covariate @ [1.0, -2.0, 0.5] + 0.5 * RNG.standard_normal(40)
    data = {"covariate": covariate.astype(np.float32), "y": y.astype(np.float32)}
    posterior = natural_fit(regression, data, am.natural(1.0), family, num_steps=1)
    precision = np.eye(3) / 4 + covariate.T @ covariate / 0.25
    mean, covariance = shared_normal(posterior)
    sds = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert np.abs(mean - np.linalg.solve(precision, covariate.T @ y / 0.25)).max() < 1e-4 * sds.min()
    np.testing.assert_allclose(covariance @ precision, np.eye(3), atol=1e-3)


def poisson(count):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    with numpyro.plate("unit", count.shape[0]):
        numpyro.sample("count", dist.Poisson(rate), obs=count)


def shares_and_places(kind, x):
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.asarray(WEIGHTS)))
    with numpyro.plate("unit", x.shape[0]):
        place = numpyro.sample("place", dist.Normal(2.0, 3.0))
        numpyro.sample("kind", dist.Categorical(shares), obs=kind)
        numpyro.sample("x", dist.Normal(place, 1.0), obs=x)


def test_only_what_follows_the_prior_is_drawn_from_it():
    data = {"kind": KINDS, "x": RNG.normal(3.0, 2.0, 60).astype(np.float32)}
    plan = am.amortize(shares_and_places, data, plate="unit", shared_family=am.exponential_family())
    batch = to_batch(am.units(data, name="unit"))
    joint, guide = initialise(plan, batch, jax.random.key(0))
    np.testing.assert_array_equal(guide.shared.whitening.value["center"], 0.0)
    np.testing.assert_array_equal(guide.shared.whitening.value["scale"], 1.0)
    drawn = prior_whitening(joint, batch, jax.random.split(jax.random.key(0), 3)[2])
    assert np.all(np.asarray(drawn[0]["scale"]) != 1.0)
    for name, numbers in guide.local.whitening.value.items():
        np.testing.assert_array_equal(numbers, drawn[1][name])


def test_minibatches_converge_by_robbins_monro_steps():
    """The shape of a minibatch's update is that of N/B times its counts; steps t^-1 average these."""
    counts, size, steps = RNG.poisson(4.0, 2000), 50, 400
    optimizer = am.natural(am.robbins_monro(delay=1.0, exponent=1.0))
    posterior = natural_fit(poisson, {"count": counts}, optimizer, num_steps=steps, batch_size=size)
    family, center = posterior.guide.shared.family.blocks[0], posterior.guide.shared.whitening.value["center"][0]
    shape, rate = float(np.exp(family.log_shape[0])), float(np.exp(family.log_rate[0] - center))
    error = 2000 * counts.std() / np.sqrt(size * steps)
    print("shape", shape, "exact", 3 + counts.sum(), "standard error", error, "rate", rate)
    assert abs(rate / 2002 - 1) < 5 * error / shape
    assert abs(shape - 3 - counts.sum()) < 5 * error


def skewed(count):
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.4))
    with numpyro.plate("unit", count.shape[0]):
        numpyro.sample("count", dist.Poisson(rate), obs=count)


def test_short_steps_find_the_best_gamma_of_a_posterior_that_is_none():
    counts = np.array([0, 0, 1])
    posterior = natural_fit(
        skewed, {"count": counts}, am.natural(0.02), objective=am.ELBO(num_particles=16), num_steps=1000
    )
    family, center = posterior.guide.shared.family.blocks[0], posterior.guide.shared.whitening.value["center"][0]
    found = np.array([float(family.log_shape[0]), float(family.log_rate[0] - center)], np.float64)
    u = np.linspace(-4, 3, 20_001)

    def log_p(u):
        return stats.norm.logpdf(u, 0, 0.4) + counts.sum() * u - 3 * np.exp(u)

    log_total = np.log(np.trapezoid(np.exp(log_p(u)), u))

    def kl(free):
        shape, rate = np.exp(free)
        log_q = shape * (u + np.log(rate)) - rate * np.exp(u) - gammaln(shape)
        return np.trapezoid(np.exp(log_q) * (log_q - log_p(u) + log_total), u)

    best = optimize.minimize(kl, found, method="Nelder-Mead", options={"fatol": 1e-12})
    print("shape, rate", np.exp(found), "best", np.exp(best.x), "KL", kl(found), "best", best.fun)
    assert best.fun > 1e-4, "this posterior should be no gamma"
    assert kl(found) < best.fun + 2e-4
    np.testing.assert_allclose(np.exp(found), np.exp(best.x), rtol=0.05)


def decoded(x):
    weight = numpyro.param("weight", jnp.ones(2))
    offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(offset + z[:, None] * weight, 0.5).to_event(1), obs=x)


def test_everything_but_q_of_the_globals_keeps_its_steps():
    data = {"x": RNG.standard_normal((8, 2)).astype(np.float32)}
    plan = am.amortize(decoded, data, plate="unit", shared_family=am.diagonal())
    pair = initialise(plan, to_batch(am.units(data, name="unit")), jax.random.key(0))
    params, _ = split_trainable(*pair)
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 0.3), params)
    rest = optax.adam(1e-2)
    optimizer = am.natural(0.5, rest)
    told = {"noise": jnp.asarray([[0.5], [-0.5]]), "slopes": jnp.asarray([[2.0], [1.0]])}

    @jax.jit
    def both(params, gradient):
        natural = optimizer.update(gradient, optimizer.init(params), params, value=0.0, **told)[0]
        return natural, rest.update(gradient, rest.init(params), params)[0]

    found, expected = both(params, gradient)
    family = found[1].shared.family.parameters.offset
    stepped = pair[1].shared.family.natural_step(**told, rate=jnp.asarray(0.5)).parameters.offset
    np.testing.assert_allclose(family, stepped - pair[1].shared.family.parameters.offset, rtol=1e-5, atol=1e-7)
    same = eqx.tree_at(lambda p: p[1].shared.family.parameters.offset, found, family * 0)
    other = eqx.tree_at(lambda p: p[1].shared.family.parameters.offset, expected, family * 0)
    for one, two in zip(jax.tree.leaves(same), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


def cholesky(x):
    numpyro.sample("correlations", dist.LKJCholesky(2, 1.0))
    with numpyro.plate("unit", x.shape[0]):
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def local_only(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


X = {"x": np.arange(6.0, dtype=np.float32)}


def test_what_natural_steps_cannot_do_is_refused():
    with pytest.raises(am.GuideError, match="site 'correlations' has support .*neither real, positive"):
        am.amortize(cholesky, X, plate="unit", shared_family=am.exponential_family())
    with pytest.raises(am.GuideError, match="it is for shared_family="):
        am.amortize(local_only, X, plate="unit", family=am.exponential_family())
    for rate in (0.0, 1.5, -1.0):
        with pytest.raises(am.FitError, match=r"a step must be a number in \(0, 1\]"):
            am.natural(rate)
    with pytest.raises(am.FitError, match="steps don't converge"):
        am.robbins_monro(delay=1.0, exponent=0.5)
    counts = {"count": COUNTS}
    with pytest.raises(am.FitError, match="q of the globals is LowRankNormal"):
        natural_fit(poisson, counts, am.natural(), am.low_rank(1), num_steps=1)
    plan = am.amortize(local_only, X, plate="unit")
    with pytest.raises(am.FitError, match="the model has none"):
        am.fit(plan, X, key=jax.random.key(0), optimizer=am.natural(), num_steps=1)
    with pytest.raises(am.FitError, match="must be optimizer= itself"):
        natural_fit(poisson, counts, optax.chain(am.natural()), num_steps=1)
    with pytest.raises(am.FitError, match="of am.ELBO"):
        natural_fit(local_and_global, X, am.natural(), objective=am.IWELBO(4), num_steps=1)
    with pytest.raises(am.FitError, match=r"needs 2 draws.*num_particles=2"):
        natural_fit(poisson, counts, am.natural(1.0), objective=am.ELBO(num_particles=1), num_steps=1)


def local_and_global(x):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mean, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
