"""What is missing or padding contributes nothing, to any bit, of values and of gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro import handlers

from amortax import DataError, ModelError, amortize, units
from amortax._types import Batch
from amortax.intake import to_batch
from amortax.joint.joint import Joint
from amortax.joint.masks import masked_log_prob
from amortax.joint.read import read
from amortax.joint.values import check_values

RNG = np.random.default_rng(0)
LENGTHS = (1, 4, 2, 3)
RAGGED = [RNG.normal(size=n).astype(np.float32) for n in LENGTHS]
NAN = np.float32(np.nan)


@eqx.filter_jit
def log_prob(joint, local, shared, batch):
    return joint.log_prob(local, shared, batch)


def joint_of(model, data):
    found = units(data, name="u")
    batch = to_batch(found)
    joint = Joint(model, read(model, batch, found.axes, "u"), {})
    check_values(joint, batch, found.labels.tolist())
    return joint, batch, found


def terms_of(model, data, shared=()):
    joint, batch, found = joint_of(model, data)
    local = jnp.linspace(-0.5, 0.5, len(found) * joint.local_size).reshape(len(found), -1)
    return log_prob(joint, local, jnp.asarray(shared, jnp.float32), batch), joint, batch, found, local


def ragged_counts(x, y, rate=dist.Poisson):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", rate(jnp.exp(z + b * x)), obs=y)


def ragged_gammas(x, y):
    ragged_counts(x, y, lambda mean: dist.Gamma(2.0, mean))


COUNTS = {"x": RAGGED, "y": [RNG.poisson(2.0, n) for n in LENGTHS]}
GAMMAS = {"x": RAGGED, "y": [RNG.gamma(2.0, size=n).astype(np.float32) for n in LENGTHS]}


def refilled(batch, value):
    """Other numbers wherever a mask is False."""
    arrays = {
        name: np.where(batch.masks[name], x, np.asarray(value, x.dtype)) if name in batch.masks else x
        for name, x in batch.arrays.items()
    }
    return Batch(arrays, batch.masks, batch.lengths)


@pytest.mark.parametrize(("model", "data"), [(ragged_counts, COUNTS), (ragged_gammas, GAMMAS)])
def test_padding_changes_no_bit_and_leaves_gradients_finite(model, data):
    terms, joint, batch, found, local = terms_of(model, data, [0.3])
    for i, (x, y) in enumerate(zip(data["x"], data["y"], strict=True)):
        mean = np.exp(float(local[i, 0]) + 0.3 * x)
        own = st.poisson(mean).logpmf(y) if model is ragged_counts else st.gamma(2.0, scale=1 / mean).logpdf(y)
        np.testing.assert_allclose(terms.unit[i], st.norm.logpdf(float(local[i, 0])) + own.sum(), rtol=1e-5)
    for fill in (1, 7, 100):
        other = log_prob(joint, local, jnp.array([0.3]), refilled(batch, fill))
        np.testing.assert_array_equal(np.asarray(other.unit), np.asarray(terms.unit))

    def loss(local, shared, batch):
        return joint.log_prob(local, shared, batch).total()

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    here = gradients(local, jnp.array([0.3]), batch)
    longer = gradients(local, jnp.array([0.3]), to_batch(found.padded(len(found), {"x": 9, "y": 9})))
    for first, second in zip(here, longer, strict=True):
        assert np.all(np.isfinite(first))
        np.testing.assert_allclose(first, second, rtol=1e-6)


def test_ten_times_the_padding_changes_at_most_a_millionth():
    data = {n: [np.resize(a, 5 if i == 0 else len(a)) for i, a in enumerate(v)] for n, v in COUNTS.items()}
    terms, joint, batch, found, local = terms_of(ragged_counts, data, [0.3])
    assert batch.arrays["x"].shape[1] == 5
    wider = log_prob(joint, local, jnp.array([0.3]), to_batch(found.padded(len(found), {"x": 50, "y": 50})))
    np.testing.assert_allclose(wider.unit, terms.unit, rtol=1e-6)
    np.testing.assert_array_equal(wider.shared, terms.shared)


def with_event(fn):
    def model(y):
        with numpyro.plate("u", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", fn(z), obs=y)

    return model


FLOATS = np.array([[0.1, NAN, 0.3], [NAN, NAN, NAN], [1.0, 2.0, 3.0]], np.float32)
CODES = np.ma.array([[0, 1, 2], [2, 2, 2], [1, 0, 0]], mask=np.isnan(FLOATS))


def normals(z):
    return dist.Normal(z[:, None] * jnp.ones(3), 1.0).to_event(1)


def categories(z):
    return dist.Categorical(logits=z[:, None, None] * jnp.arange(3.0) * jnp.ones((3, 1))).to_event(1)


def poissons(z):
    return dist.Poisson(jnp.exp(z)[:, None] * jnp.ones(3)).to_event(1)


def masked_by_hand(z):
    return normals(z).mask(jnp.array(True))


@pytest.mark.parametrize(
    ("event", "data"),
    [(normals, FLOATS), (categories, CODES), (poissons, CODES), (masked_by_hand, FLOATS)],
    ids=["floats", "categories", "counts", "masked_by_hand"],
)
def test_missing_cells_of_independent_events_drop_out_one_by_one(event, data):
    terms, joint, batch, _, local = terms_of(with_event(event), {"y": data})
    z = local[:, 0]
    elements = normals(z) if event is masked_by_hand else event(z)
    cells = elements.base_dist.log_prob(batch.arrays["y"])
    expected = st.norm.logpdf(z) + np.where(np.isnan(FLOATS), 0.0, cells).sum(axis=1)
    np.testing.assert_allclose(terms.unit, expected, rtol=1e-5)
    other = log_prob(joint, local, jnp.zeros(0), refilled(batch, 2))
    np.testing.assert_array_equal(np.asarray(other.unit), np.asarray(terms.unit))


def test_a_wholly_missing_unit_is_its_prior():
    terms, _, _, _, local = terms_of(with_event(normals), {"y": FLOATS})
    np.testing.assert_allclose(terms.unit[1], st.norm.logpdf(float(local[1, 0])), rtol=1e-6)


def multivariate(z):
    return dist.MultivariateNormal(z[:, None] * jnp.ones(3), jnp.eye(3) + 0.5)


def test_a_multivariate_event_missing_as_a_whole_contributes_nothing():
    whole = np.where(np.arange(3)[:, None] == 1, NAN, np.nan_to_num(FLOATS))
    terms, _, _, _, local = terms_of(with_event(multivariate), {"y": whole})
    z = np.asarray(local[:, 0])
    np.testing.assert_allclose(terms.unit[1], st.norm.logpdf(z[1]), rtol=1e-6)
    likelihood = st.multivariate_normal(np.full(3, z[2]), np.eye(3) + 0.5).logpdf(whole[2])
    np.testing.assert_allclose(terms.unit[2], st.norm.logpdf(z[2]) + likelihood, rtol=1e-5)


def test_a_multivariate_event_missing_in_part_is_refused_by_site_and_unit():
    found = units({"y": FLOATS[[2, 0, 1]]}, labels=["a", "b", "c"], name="u")
    reason = r"site 'y' is missing in part at u 'b', but its event of shape \(3,\) has one joint density"
    with pytest.raises(DataError, match=reason) as error:
        joint_of(with_event(multivariate), found)
    assert "to_event" in str(error.value)


def test_a_partly_missing_row_inside_a_plate_is_refused_by_its_place():
    def model(y):
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("e", y.shape[1], dim=-1):
                numpyro.sample("y", dist.MultivariateNormal(z[..., None] * jnp.ones(2), jnp.eye(2)), obs=y)

    rows = [np.ones((n, 2), np.float32) for n in LENGTHS]
    terms_of(model, {"y": rows})  # padding alone is missing as a whole
    rows[3][2, 1] = np.nan
    with pytest.raises(DataError, match=r"site 'y' is missing in part at u '3', element 2,"):
        joint_of(model, {"y": rows})


def ragged_derived(y):
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.factor("f", -jnp.abs(z * jnp.log(y)))
            numpyro.sample("log_y", dist.Normal(z, 1.0), obs=jnp.log(y))


def test_a_function_of_the_data_is_missing_where_the_data_are():
    def model(y):
        with numpyro.plate("u", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("log_y", normals(z), obs=jnp.log(y))

    positive = np.exp(FLOATS)
    terms, joint, batch, _, local = terms_of(model, {"y": positive})
    cells = st.norm(np.asarray(local)).logpdf(FLOATS)
    np.testing.assert_allclose(terms.unit, st.norm.logpdf(local[:, 0]) + np.nansum(cells, axis=1), rtol=1e-5)
    gradient = jax.grad(lambda u: joint.log_prob(u, jnp.zeros(0), batch).total())(local)
    np.testing.assert_allclose(gradient[:, 0], -local[:, 0] + np.nansum(FLOATS - local, axis=1), rtol=1e-4, atol=1e-6)


def test_ragged_plates_mask_derived_observations_and_factors_too():
    data = {"y": [np.exp(x) for x in RAGGED]}
    plan = amortize(ragged_derived, data, plate="u")  # the probe too compares under masks
    assert plan.structure.plates[0].ragged
    terms, _, _, _, local = terms_of(ragged_derived, data)
    for i, log_y in enumerate(RAGGED):
        z = float(local[i, 0])
        expected = st.norm.logpdf(z) + (st.norm(z).logpdf(log_y) - np.abs(z * log_y)).sum()
        np.testing.assert_allclose(terms.unit[i], expected, rtol=1e-5)


def test_two_ragged_plates_keep_their_own_lengths():
    def model(x, y):
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("e", y.shape[1], dim=-1):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
            with numpyro.plate("f", x.shape[1], dim=-1):
                numpyro.sample("x", dist.Normal(-z, 1.0), obs=x)

    data = {"y": RAGGED, "x": [x + 1 for x in RAGGED[::-1]]}  # the same padded length, other lengths
    terms, joint, _, _, local = terms_of(model, data)
    assert [(p.name, p.argument) for p in joint.structure.plates] == [("e", "y"), ("f", "x")]
    for i in range(4):
        z = float(local[i, 0])
        expected = st.norm.logpdf(z) + st.norm(z).logpdf(data["y"][i]).sum() + st.norm(-z).logpdf(data["x"][i]).sum()
        np.testing.assert_allclose(terms.unit[i], expected, rtol=1e-5)


def test_the_users_own_mask_holds_beside_the_missing():
    def model(x, y):
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("e", y.shape[1], dim=-1), handlers.mask(mask=x > 0):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    x = np.array([[1, -1, 1], [1, 1, 1], [-1, 1, 1]], np.float32)
    terms, _, _, _, local = terms_of(model, {"x": x, "y": FLOATS})
    cells = np.where((x > 0) & ~np.isnan(FLOATS), st.norm(np.asarray(local)).logpdf(np.nan_to_num(FLOATS)), 0.0)
    np.testing.assert_allclose(terms.unit, st.norm.logpdf(local[:, 0]) + cells.sum(axis=1), rtol=1e-5)


def test_an_expanded_masked_independent_is_masked_by_element():
    fn = dist.Normal(0.0, 1.0).expand([3]).to_event(1).mask(jnp.array(True)).expand([2])
    value = jnp.arange(6.0).reshape(2, 3)
    mask = jnp.array([[True, False, True], [False, False, False]])
    expected = [st.norm.logpdf([0.0, 2.0]).sum(), 0.0]
    np.testing.assert_allclose(masked_log_prob(fn, value, mask), expected, rtol=1e-6)


def test_a_lagged_value_that_is_missing_is_refused():
    def model(y):
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("t", y.shape[1], dim=-1):
                before = jnp.pad(y[:, :-1], ((0, 0), (1, 0)))
                numpyro.sample("y", dist.Normal(z * before, 1.0), obs=y)

    reason = r"data\['y'\] is missing at u '0', element 1 .* changes the distribution of site 'y'"
    with pytest.raises(DataError, match=reason):
        joint_of(model, {"y": FLOATS})


@pytest.mark.parametrize("hides", [lambda y: (y > 0).astype(jnp.int32), lambda y: jnp.where(y > 0, 1.0, 0.0)])
def test_a_function_that_hides_what_is_missing_is_refused(hides):
    def model(y):
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("e", y.shape[1], dim=-1):
                numpyro.sample("b", dist.Bernoulli(logits=z), obs=hides(y))

    data = np.array([[-1.0, NAN, 2.0], [1.0, -1.0, 2.0]], np.float32)
    with pytest.raises((DataError, ModelError), match="site 'b'"):
        amortize(model, {"y": data}, plate="u")
