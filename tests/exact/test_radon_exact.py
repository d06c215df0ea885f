"""Is the exact posterior of the radon model exact? Against Stan, against another quadrature, against brute force."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import stats

from amortax._errors import DataError
from amortax.models import radon

SHARED = Path(__file__).parents[3] / "shared" / "data" / "inference_gym" / "radon_minnesota"
ORDER = (
    "weight_uranium",
    "weight_floor",
    "weight_floor_by_county",
    "county_effect_mean",
    "county_effect_scale",
    "log_radon_scale",
)


@pytest.fixture(scope="module")
def answer():
    return radon.exact_posterior(radon.counties())


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"the shared data {name} is not beside this checkout")
    return np.load(SHARED / name, allow_pickle=False)


def in_order(answer):
    """Mean and sd of the 85 effects, then of the globals."""
    return (
        np.concatenate([answer.train.mean, [answer.globals[name][0] for name in ORDER]]),
        np.concatenate([answer.train.sd, [answer.globals[name][1] for name in ORDER]]),
    )


def test_embedded_data_equal_the_source():
    source, data = shared("data.npz"), radon.counties()
    sizes = [len(houses) for houses in data["log_radon"]]
    assert len(sizes) == 85
    assert sum(sizes) == 919
    assert np.array_equal(np.concatenate(data["log_radon"]), source["log_radon"])
    assert np.array_equal(np.concatenate(data["floor"]), source["floor"])
    assert np.array_equal(np.repeat(data["log_uranium"], sizes), source["log_uranium"])
    assert np.array_equal(np.repeat(data["floor_by_county"], sizes), source["floor_by_county"])
    assert data["county"] == [str(name) for name in source["county_names"]]
    assert np.array_equal(np.repeat(np.arange(85), sizes), source["county"])


def test_embedded_reference_equals_the_source():
    source, reference = shared("reference_halfnormal.npz"), radon.reference()
    assert len(reference) == 91
    for i, name in enumerate(radon.counties()["county"]):
        expected = source["mean__county_effect"][i], source["sd__county_effect"][i]
        assert reference[f"county_effect[{name}]"] == expected
    for i, name in enumerate(ORDER[:3]):
        assert reference[name] == (source["mean__weight"][i], source["sd__weight"][i])
    for name in ORDER[3:]:
        assert reference[name] == (source[f"mean__{name}"], source[f"sd__{name}"])


def test_agrees_with_the_other_quadrature(answer):
    source = shared("crosscheck_halfnormal.npz")
    mean, sd = in_order(answer)
    assert np.max(np.abs(mean - source["mean"]) / sd) < 0.002
    assert np.max(np.abs(sd / source["sd"] - 1)) < 0.002


def test_agrees_with_stan(answer):
    mean, sd = in_order(answer)
    names = [f"county_effect[{name}]" for name in radon.counties()["county"]] + list(ORDER)
    expected_mean, expected_sd = np.array([radon.reference()[name] for name in names]).T
    assert np.max(np.abs(mean - expected_mean) / expected_sd) < 0.03
    assert np.max(np.abs(sd / expected_sd - 1)) < 0.04


def test_the_quadrature_has_converged(answer):
    assert answer.moved <= 1e-4
    assert answer.nodes.weight.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.all(answer.train.q05 < answer.train.q50)
    assert np.all(answer.train.q50 < answer.train.q95)


def some(data, keep):
    return {name: [value for value, kept in zip(values, keep, strict=True) if kept] for name, values in data.items()}


def draw_globals(nodes, rng, size):
    """Draws of (s, e) and of b = (mu, w1, w2, w3) from the quadrature's posterior."""
    index = rng.choice(len(nodes.weight), size=size, p=nodes.weight)
    root = np.linalg.cholesky(nodes.coefficient_cov[index])
    noise = rng.standard_normal((size, 4))
    b = nodes.coefficient_mean[index] + np.einsum("gij,gj->gi", root, noise)
    return nodes.county_effect_scale[index], nodes.log_radon_scale[index], b


def test_new_counties_against_brute_force():
    data, rng, size = radon.counties(), np.random.default_rng(5), 200_000
    keep = np.arange(85) % 9 != 4
    train, new = some(data, keep), some(data, ~keep)
    result = radon.exact_posterior(train, new=new)
    s, e, b = draw_globals(result.nodes, rng, size)
    for i, radon_levels in enumerate(new["log_radon"]):
        fixed = b[:, 1] * new["log_uranium"][i] + b[:, 3] * new["floor_by_county"][i]
        residual = radon_levels[None] - fixed[:, None] - b[:, 2:3] * new["floor"][i][None]
        precision = 1 / s**2 + len(radon_levels) / e**2
        centre = (b[:, 0] / s**2 + residual.sum(1) / e**2) / precision
        effect = centre + rng.standard_normal(size) / np.sqrt(precision)
        sd = result.new.sd[i]
        assert abs(effect.mean() - result.new.mean[i]) < 5 * sd / np.sqrt(size)
        square = (effect - result.new.mean[i]) ** 2
        assert abs(square.mean() - sd**2) < 5 * square.std() / np.sqrt(size)
        for level, value in ((0.05, result.new.q05[i]), (0.5, result.new.q50[i]), (0.95, result.new.q95[i])):
            assert abs(np.mean(effect < value) - level) < 5 * np.sqrt(level * (1 - level) / size)


def test_new_counties_do_not_update_the_globals():
    train = some(radon.counties(), np.arange(85) < 40)
    alone, both = radon.exact_posterior(train), radon.exact_posterior(train, new=radon.counties(["WRIGHT"]))
    assert both.globals == alone.globals
    assert both.log_marginal == alone.log_marginal


@pytest.fixture(scope="module")
def tiny():
    """Four counties, ten houses, one county without any."""
    floor = [np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0, 1.0, 0.0, 0.0]), np.array([])]
    rng = np.random.default_rng(11)
    outcome = [rng.normal(1.0 + 0.5 * i, 0.6, len(f)) for i, f in enumerate(floor)]
    return {
        "log_uranium": [-0.7, 0.4, 0.1, 0.3],
        "floor_by_county": [1 / 3, 1.0, 0.2, 0.0],
        "floor": floor,
        "log_radon": outcome,
    }


def test_tiny_data_against_draws_from_the_prior(tiny):
    """Dense covariance of (effects, y) at 40,000 prior draws of the scales, weighted by their likelihood."""
    rng, size = np.random.default_rng(2), 40_000
    county = np.repeat(np.arange(4), [len(f) for f in tiny["floor"]])
    y, floor = np.concatenate(tiny["log_radon"]), np.concatenate(tiny["floor"])
    uranium, by_county = np.array(tiny["log_uranium"])[county], np.array(tiny["floor_by_county"])[county]
    x = np.stack([np.ones_like(y), uranium, floor, by_county], 1)
    same = (county[:, None] == np.arange(4)).astype(float)
    s, e = np.abs(rng.standard_normal((2, size)))
    cov_y = x @ x.T + s[:, None, None] ** 2 * (same @ same.T) + e[:, None, None] ** 2 * np.eye(len(y))
    cross = 1.0 + s[:, None, None] ** 2 * same.T  # cov(effect, y): through mu, and through the county's own effect
    root = np.linalg.cholesky(cov_y)
    white = np.linalg.solve(root, np.broadcast_to(y[:, None], (size, len(y), 1)))[..., 0]
    log_det = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
    likelihood = np.exp(-0.5 * np.sum(white**2, 1) - log_det - 0.5 * len(y) * np.log(2 * np.pi))
    effects = np.einsum("gcy,gy->gc", cross, np.linalg.solve(cov_y, y[None, :, None].repeat(size, 0))[..., 0])

    result = radon.exact_posterior(tiny)
    evidence = likelihood.mean()
    error = likelihood.std() / np.sqrt(size)
    assert abs(np.exp(result.log_marginal) - evidence) < 5 * error
    weight = likelihood / likelihood.sum()
    for values, mean in (
        (s, result.globals["county_effect_scale"][0]),
        (e, result.globals["log_radon_scale"][0]),
        *zip(effects.T, result.train.mean, strict=True),
    ):
        estimate = weight @ values
        assert abs(estimate - mean) < 5 * np.sqrt(weight**2 @ (values - estimate) ** 2)


def test_padded_arrays_give_the_same_answer(tiny):
    padded = {name: np.full((4, 6), np.nan) for name in ("floor", "log_radon")}
    for name, rows in padded.items():
        for row, values in zip(rows, tiny[name], strict=True):
            row[: len(values)] = values
    first, second = radon.exact_posterior(tiny), radon.exact_posterior({**tiny, **padded})
    assert np.array_equal(first.train.mean, second.train.mean)


def test_the_numpyro_model_is_the_formula():
    data = radon.counties(["AITKIN", "BELTRAMI", "BENTON"])
    arrays = {name: jnp.asarray(np.stack([v[:4] for v in data[name]])) for name in ("floor", "log_radon")}
    arrays |= {name: jnp.asarray(data[name]) for name in ("log_uranium", "floor_by_county")}
    value = dict(zip(ORDER, (0.7, -0.6, 0.3, 1.2, 0.4, 0.8), strict=True))
    effect = np.array([1.1, 0.6, 1.9])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        got, _ = log_density(radon.model, (), arrays, {**value, "county_effect": jnp.asarray(effect)[:, None]})
    expected = sum(stats.norm.logpdf(value[name]) for name in ORDER[:4])
    expected += sum(stats.halfnorm.logpdf(value[name]) for name in ORDER[4:])
    expected += stats.norm.logpdf(effect, 1.2, 0.4).sum()
    for i in range(3):
        centre = 0.7 * data["log_uranium"][i] - 0.6 * data["floor"][i][:4] + 0.3 * data["floor_by_county"][i]
        expected += stats.norm.logpdf(data["log_radon"][i][:4], centre + effect[i], 0.8).sum()
    assert got == pytest.approx(expected, rel=1e-5)


def test_errors_name_the_facts(tiny):
    with pytest.raises(DataError, match="'NOWHERE'"):
        radon.counties(["NOWHERE"])
    with pytest.raises(DataError, match="'floor': 3"):
        radon.exact_posterior({**tiny, "floor": tiny["floor"][:3]})
    with pytest.raises(DataError, match="county 1: floor has shape"):
        radon.exact_posterior({**tiny, "floor": [*tiny["floor"][:1], np.zeros(5), *tiny["floor"][2:]]})
    with pytest.raises(DataError, match="not all equal"):
        radon.exact_posterior({**tiny, "log_radon": [np.zeros_like(f) for f in tiny["floor"]]})
