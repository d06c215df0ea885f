"""What hides a fault from a careless probe: equal rows, a start at zero, codes from one, two indices at once."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am

RNG = np.random.default_rng(0)
Y = RNG.standard_normal(40).astype(np.float32)


def centred(x, y):
    b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("u", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z + b * (x - x.mean()), 1), obs=y)


def learned(x, y):
    w = numpyro.param("w", 0.0)
    with numpyro.plate("u", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z + w * (x - x.mean()), 1), obs=y)


@pytest.mark.parametrize("x", [np.repeat([0.0, 1.0], 20), np.repeat([1.0, 0.0], [39, 1]), np.ones(40)])
def test_equal_rows_do_not_hide_that_units_are_mixed(x):
    with pytest.raises(am.ModelError, match="'y' is not separable by unit"):
        am.amortize(centred, {"x": x.astype(np.float32), "y": Y}, plate="u")


def test_a_parameter_that_starts_at_zero_does_not_hide_that_units_are_mixed():
    with pytest.raises(am.ModelError, match="'y' is not separable by unit"):
        am.amortize(learned, {"x": RNG.standard_normal(40).astype(np.float32), "y": Y}, plate="u")


def loadings(y):
    w = numpyro.param("w", jnp.ones(6))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("item", 6, dim=-1):
            numpyro.sample("y", dist.Normal(z * w, 1), obs=y)


def test_equal_starting_loadings_do_not_make_items_a_set():
    data = {"y": RNG.standard_normal((10, 6)).astype(np.float32)}
    plan = am.amortize(loadings, data, plate="u")
    assert not plan.structure.plates[0].exchangeable
    assert isinstance(plan.encoder, type(am.dense()))


def exchangeable(y):
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("item", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z, 1), obs=y)


def test_a_set_of_fixed_size_may_be_read_as_plain_numbers_if_the_user_says_so():
    data = {"y": RNG.standard_normal((10, 6)).astype(np.float32)}
    plan = am.amortize(exchangeable, data, plate="u", encoder=am.dense(width=8, depth=1))
    posterior = am.fit(plan, data, key=jax.random.key(0), run=am.Run(num_steps=5, progress=False))
    contexts = [posterior.encode({"y": y}) for y in (data["y"], data["y"][:, ::-1])]
    assert contexts[0].shape == (10, 8 + 6)
    assert np.abs(contexts[0] - contexts[1]).max() > 0.1


def crossed(a, b, y):
    table = numpyro.sample("table", dist.Normal(0, 1).expand([3, 4]).to_event(2))
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z + table[a, b], 1), obs=y)


def one_based(item, y):
    difficulty = numpyro.sample("difficulty", dist.Normal(0, 1).expand([5]).to_event(1))
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z - difficulty[item - 1], 1), obs=y)


def capped(count, y):
    effect = numpyro.sample("effect", dist.Normal(0, 1).expand([6]).to_event(1))
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z + effect[jnp.minimum(count, 5)], 1), obs=y)


def test_every_argument_of_an_index_is_a_category_of_its_own_axis():
    data = {"a": RNG.integers(0, 3, 40), "b": RNG.integers(0, 4, 40), "y": Y}
    structure = am.amortize(crossed, data, plate="u").structure
    assert [structure.argument(n).categories for n in "ab"] == [3, 4]
    data["a"][7] = 99
    with pytest.raises(am.DataError, match=r"data\['a'\] is 99 at u '7'.*length 3: expected 0 to 2"):
        am.amortize(crossed, data, plate="u")


def test_codes_from_one_are_read_as_the_model_reads_them():
    data = {"item": np.resize(np.arange(1, 6), 40), "y": Y}
    plan = am.amortize(one_based, data, plate="u")
    argument = plan.structure.argument("item")
    assert (argument.categories, argument.first_category) == (5, 1)
    posterior = am.fit(plan, data, key=jax.random.key(0), run=am.Run(num_steps=5, progress=False))
    assert len(np.unique(posterior.encode({"item": np.arange(1, 6), "y": Y[:1].repeat(5)}), axis=0)) == 5
    for wrong in (0, 6):
        data["item"][3] = wrong
        with pytest.raises(am.DataError, match=rf"data\['item'\] is {wrong} at u '3'.*expected 1 to 5"):
            am.amortize(one_based, data, plate="u")


def test_a_function_of_a_count_is_no_index_to_be_checked():
    data = {"count": np.resize([0, 3, 5, 1000], 40), "y": Y}
    assert am.amortize(capped, data, plate="u").structure.argument("count").categories is None


def event(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z[:, None], 1).expand([y.shape[0], y.shape[1]]).to_event(1), obs=y)


def test_an_event_of_unequal_lengths_is_refused_with_the_plate_to_write():
    data = {"y": [RNG.standard_normal(n) for n in (3, 2, 5)]}
    with pytest.raises(am.ModelError, match=r"data\['y'\] differs in length by u.*along no plate"):
        am.amortize(event, data, plate="u")


def nothing_hidden(y):
    with numpyro.plate("u", y.shape[0]):
        numpyro.sample("y", dist.Normal(0, 1), obs=y)


def test_a_model_without_latents_is_refused():
    with pytest.raises(am.ModelError, match="'nothing_hidden' has no latent site"):
        am.amortize(nothing_hidden, {"y": Y}, plate="u")


class Unsampled(dist.Normal):
    def sample(self, key, sample_shape=()):
        raise NotImplementedError


def unsampled(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", Unsampled(z, 1), obs=y)


def test_a_likelihood_without_a_sampler_trains():
    plan = am.amortize(unsampled, {"y": Y}, plate="u")
    posterior = am.fit(plan, {"y": Y}, key=jax.random.key(0), run=am.Run(num_steps=5, progress=False))
    assert np.isfinite(posterior.record.elbo_per_unit).all()


def test_floats_that_float32_would_merge_are_refused_by_name():
    with pytest.raises(am.DataError, match=r"data\['x'\], unit \d: got 170000000\d.0; float32 merges it.*subtract"):
        am.units({"x": 1.7e9 + np.arange(5.0)})
    am.units({"x": np.full(5, 0.1)})  # rounded, but nothing is lost
    am.units({"x": 1e9 * np.arange(5.0) + 0.1})


def test_large_codes_stay_apart_in_the_encoder():
    data = {"x": (2_000_000_000 + np.arange(40)).astype(np.int32), "y": Y}

    def model(x, y):
        with numpyro.plate("u", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(z + (x - 2_000_000_000) / 40, 1), obs=y)

    posterior = am.fit(
        am.amortize(model, data, plate="u"), data, key=jax.random.key(0), run=am.Run(num_steps=5, progress=False)
    )
    assert len(np.unique(posterior.encode({"x": data["x"], "y": np.zeros(40, np.float32)}), axis=0)) == 40
