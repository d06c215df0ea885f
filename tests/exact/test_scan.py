"""NumPyro's `scan` in a model: the same density, simulation and answers as its steps written out one by one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

import amortax as am
from amortax.intake import to_batch
from amortax.joint.inverse import unconstrain
from amortax.joint.joint import Joint
from amortax.joint.read import read
from amortax.joint.structure import Structure
from amortax.joint.whole import whole

RNG = np.random.default_rng(0)
STEPS = 3
X = RNG.normal(size=(4, STEPS)).astype(np.float32)


def joint_of(model, data, plate="series"):
    name = plate or "dataset"
    found = am.units(data, name=name)
    batch = to_batch(found)
    model = whole(model, batch) if plate is None else model
    structure = read(model, batch, {} if plate is None else found.axes, name)
    return Joint(model, structure, {}), jax.tree.map(jnp.asarray, batch)


def zoo(x, before, name):
    """One step of much that a body may hold: bounds that move, joint events, inner plates, mixtures, scales."""
    n, parts = x.shape
    with numpyro.plate("series", n, dim=-2):
        a = numpyro.sample(name("a"), dist.Uniform(before, before + 2.0))
        v = numpyro.sample(name("v"), dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.3], [0.3, 1.0]])))
        w = numpyro.sample(name("w"), dist.Normal(jnp.zeros(3), jnp.array([1.0, 2.0, 3.0])).to_event(1))
        s = numpyro.sample(name("s"), dist.LogNormal(v[..., 0], 0.5))
        numpyro.factor(name("f"), -0.1 * a**2)
        with numpyro.plate("part", parts, dim=-1), handlers.scale(scale=0.5):
            e = numpyro.sample(name("e"), dist.Gamma(2.0, s))
            each = dist.Normal(jnp.stack([e, a + 0.0 * e], -1), s[..., None])
            share = dist.Categorical(probs=jnp.array([0.3, 0.7]))
            numpyro.sample(name("x"), dist.MixtureSameFamily(share, each), obs=x)
    return 0.5 * a + w[..., :1].sum(-1)


def zoo_by_scan(x):
    steps = jnp.moveaxis(x, 1, 0)
    scan(lambda a, xt: (zoo(xt, a, str), None), jnp.zeros((x.shape[0], 1)), steps)


def zoo_by_loop(x):
    a = jnp.zeros((x.shape[0], 1))
    for t in range(x.shape[1]):
        a = zoo(x[:, t], a, lambda name, t=t: f"{name}_{t}")


@eqx.filter_jit
def densities(joint, local, shared, batch):
    return joint.log_prob(local, shared, batch)


def test_the_density_is_that_of_the_steps_written_out():
    data = {"x": RNG.normal(size=(2, 2, 2)).astype(np.float32)}
    (scanned, batch), (looped, _) = joint_of(zoo_by_scan, data), joint_of(zoo_by_loop, data)
    assert {s.name for s in scanned.structure.of("local")} == {"a", "v", "w", "s", "e"}
    local = jnp.asarray(RNG.normal(size=(2, scanned.local_size)), jnp.float32)

    def spread(flat):
        free = scanned.structure.unpack("local", flat)
        return looped.structure.pack("local", {f"{n}_{t}": x[t] for n, x in free.items() for t in range(2)})

    found = densities(scanned, local, jnp.zeros(0), batch)
    exact = densities(looped, jax.vmap(spread)(local), jnp.zeros(0), batch)
    np.testing.assert_allclose(found.unit, exact.unit, rtol=1e-5)
    slopes = jax.jit(jax.grad(lambda u: jnp.sum(scanned.log_prob(u, jnp.zeros(0), batch).unit)))(local)
    assert np.all(np.isfinite(slopes))
    assert np.all(slopes != 0)


def volatile(x, reverse=False):
    phi = numpyro.sample("phi", dist.Normal(0.5, 0.2))

    def body(z, xt):
        with numpyro.plate("series", x.shape[0]):
            scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
            z = numpyro.sample("z", dist.Normal(phi * z, scale))
            numpyro.deterministic("twice", 2.0 * z)
            numpyro.sample("x", dist.Normal(z, 0.7), obs=xt)
        return z, None

    scan(body, jnp.zeros(x.shape[0]), jnp.moveaxis(x, 1, 0), reverse=reverse)


def by_hand(u, phi, x, seen=None):
    """One series: log scales and levels (2 T,), Jacobian of the scales included."""
    log_scale, z = u[:STEPS], u[STEPS:]
    total = dist.Normal(0.0, 0.5).log_prob(log_scale).sum()
    total += dist.Normal(phi * jnp.append(0.0, z[:-1]), jnp.exp(log_scale)).log_prob(z).sum()
    return total + jnp.where(np.isnan(x), 0.0, dist.Normal(z, 0.7).log_prob(np.nan_to_num(x))).sum()


VOLATILE, BATCH = joint_of(volatile, {"x": X})


def test_the_density_and_the_jacobian_are_those_by_hand():
    local = jnp.asarray(RNG.normal(size=(4, 2 * STEPS)), jnp.float32)
    terms = densities(VOLATILE, local, jnp.array([0.4]), BATCH)
    np.testing.assert_allclose(terms.unit, [by_hand(u, 0.4, x) for u, x in zip(local, X, strict=True)], rtol=1e-5)
    assert float(terms.shared) == pytest.approx(float(dist.Normal(0.5, 0.2).log_prob(0.4)), rel=1e-6)
    structure = VOLATILE.structure
    assert Structure.from_json(structure.to_json()) == structure
    assert [(s.name, s.dims) for s in structure.of("local", "deterministic", "observed")] == [
        (name, ("time",)) for name in ("scale", "z", "twice", "x")
    ]


def test_values_and_numbers_are_each_others_inverse():
    unit = jax.tree.map(lambda x: x[0], BATCH)
    local, shared = jnp.asarray(RNG.normal(size=2 * STEPS), jnp.float32), jnp.array([0.4])

    @jax.jit
    def there_and_back(local, shared):
        values = VOLATILE.constrain(local, shared, unit)
        return values, unconstrain(VOLATILE, values, unit)

    values, (again, _, jacobian) = there_and_back(local, shared)
    np.testing.assert_allclose(values["scale"], np.exp(local[:STEPS]), rtol=1e-6)
    np.testing.assert_allclose(values["twice"], 2.0 * local[STEPS:], rtol=1e-6)
    np.testing.assert_allclose(again, local, rtol=1e-5)
    assert float(jacobian.unit) == pytest.approx(float(local[:STEPS].sum()), rel=1e-5)


def test_reversed_steps_stand_where_their_data_do():
    def backwards(x):
        volatile(x, reverse=True)

    joint, _ = joint_of(backwards, {"x": X})
    local = jnp.asarray(RNG.normal(size=(4, 2, STEPS)), jnp.float32)
    found = densities(joint, local.reshape(4, -1), jnp.array([0.4]), BATCH).unit
    turned = densities(VOLATILE, local[:, :, ::-1].reshape(4, -1), jnp.array([0.4]), jax.tree.map(jnp.fliplr, BATCH))
    np.testing.assert_allclose(found, turned.unit, rtol=1e-5)


def test_gaps_count_nothing():
    gaps = X.copy()
    gaps[0, 0] = gaps[1, 1:] = np.nan
    joint, batch = joint_of(volatile, {"x": gaps})
    local = jnp.asarray(RNG.normal(size=(4, 2 * STEPS)), jnp.float32)
    found = densities(joint, local, jnp.array([0.4]), batch).unit
    np.testing.assert_allclose(found, [by_hand(u, 0.4, x) for u, x in zip(local, gaps, strict=True)], rtol=1e-5)


def test_simulations_go_from_step_to_step():
    """Of a level without volatility all moments are known: x_t sees what z_(t-1) drew, not what the data hold."""

    def steady(x):
        def body(z, xt):
            with numpyro.plate("series", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0.8 * z, 1.0))
                xt = numpyro.sample("x", dist.Normal(z, 0.5), obs=xt)
            return z, None

        scan(body, jnp.zeros(x.shape[0]), x.T)

    joint, batch = joint_of(steady, {"x": 100.0 + X})
    assert joint.structure.cannot_simulate == ""
    unit, count = jax.tree.map(lambda x: x[0], batch), 20000
    keys = jax.random.split(jax.random.key(1), count)
    z, drawn = jax.jit(jax.vmap(lambda key: joint.simulate(key, jnp.zeros(0), unit)))(keys)
    step = np.tril(0.8 ** np.maximum(np.subtract.outer(np.arange(STEPS), np.arange(STEPS)), 0))
    prior = step @ step.T
    both = np.block([[prior, prior], [prior, prior + 0.25 * np.eye(STEPS)]])
    found = np.cov(np.concatenate([z, drawn["x"]], axis=1), rowvar=False)
    errors = np.sqrt((both**2 + np.outer(np.diag(both), np.diag(both))) / count)
    assert np.all(np.abs(found - both) < 5 * errors)


def test_a_whole_data_set_is_scanned_without_a_plate():
    def alone(x):
        def body(z, xt):
            scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
            z = numpyro.sample("z", dist.Normal(0.4 * z, scale))
            assert z.shape == ()
            numpyro.sample("x", dist.Normal(z, 0.7), obs=xt)
            return z, z

        _, z = scan(body, 0.0, x)
        numpyro.deterministic("last", z[-1])

    gaps = X.copy()
    gaps[2, 1] = np.nan
    joint, batch = joint_of(alone, {"x": gaps}, plate=None)
    assert [s.dims for s in joint.structure.of("local", "observed")] == [("time",)] * 3
    assert joint.structure.cannot_simulate == ""
    local = jnp.asarray(RNG.normal(size=(4, 2 * STEPS)), jnp.float32)
    found = densities(joint, local, jnp.zeros(0), batch).unit
    np.testing.assert_allclose(found, [by_hand(u, 0.4, x) for u, x in zip(local, gaps, strict=True)], rtol=1e-5)


def plate_outside(x):
    def body(z, xt):
        z = numpyro.sample("z", dist.Normal(z, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
        return z, None

    with numpyro.plate("series", x.shape[0]):
        scan(body, jnp.zeros(x.shape[0]), x.T)


def with_body(write):
    def model(x):
        def body(z, xt):
            with numpyro.plate("series", x.shape[0]):
                numpyro.sample("x", dist.Normal(write(z), 1.0), obs=xt)
            return z, None

        scan(body, jnp.zeros(x.shape[0]), x.T)

    return model


def nested(x):
    scan(lambda z, _: scan(lambda c, _: (c, c), z, None, length=2), 0.0, None, length=2)


def renamed(x):
    with handlers.scope(prefix="in"):
        volatile(x)


REFUSED = [
    (plate_outside, ["inside plate 'series', with its sites ['z', 'x']", "put the plate into the body"]),
    (with_body(lambda z: z + numpyro.sample("k", dist.Bernoulli(0.5))), ["site 'k' is a discrete latent in the body"]),
    (with_body(lambda z: z + numpyro.param("w", 1.0)), ["param 'w' stands in the body", "write it before the scan"]),
    (nested, ["in the body of another"]),
    (with_body(lambda z: cond(True, lambda c: c, lambda c: c, z)), ["control_flow.cond", "jnp.where"]),
    (
        with_body(lambda z: numpyro.sample("z", dist.Normal(z, 1.0).expand([2, 4]))),
        ["site 'z' has log densities of shape (3, 2, 4)", "time: dim=-3"],
    ),
]


@pytest.mark.parametrize(("model", "words"), REFUSED)
def test_what_is_refused_says_what_to_write(model, words):
    with pytest.raises(am.ModelError) as caught:
        joint_of(model, {"x": X})
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_plate_called_as_the_steps_is_refused():
    def model(x):
        with numpyro.plate("time", 2):
            numpyro.sample("b", dist.Normal(0.0, 1.0))
        volatile(x)

    with pytest.raises(am.ModelError, match="plate 'time' has the name of the steps of a scan"):
        joint_of(model, {"x": X})


def test_a_handler_that_renames_around_a_scan_is_refused():
    with pytest.raises(am.ModelError, match="site 'in/scale' has another name outside a scan"):
        joint_of(renamed, {"x": X})
