"""Item response on real and simulated data against reference posteriors: persons are units, items are globals.

`shared` holds the data; a clone without it skips. Printed by `pytest -m slow -s`: worst mean difference in reference
sd and the range of sd ratios, site by site.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import log_ndtr
from marginal import LOG_NODES, NODES, normal, weigh
from references import answer, differences, offsets, read_reference

import amortax as am
from amortax.models import item_response
from amortax.models.item_response import Priors

pytestmark = pytest.mark.slow
NAMES = {  # of `irt_2pl`, and here
    "theta": "ability",
    "sigma_theta": "ability_scale",
    "a": "discrimination",
    "sigma_a": "discrimination_scale",
    "b": "difficulty",
    "mu_b": "difficulty_mean",
    "sigma_b": "difficulty_scale",
}


def test_one_parameter(shared):
    folder = shared / "data/inference_gym/item_response_1pl"
    data, reference = np.load(folder / "data.npz"), np.load(folder / "reference.npz")
    table = {
        "person": data["student_ids"],
        "item": data["question_ids"].astype(np.int32),
        "correct": data["correct"].astype(np.int32),
    }
    units = am.from_table(table, unit="person", columns=["item", "correct"])
    units = units.take(np.argsort(units.labels))
    # Difficulties around the mean ability, which reference has as a number of its own.
    priors = Priors(ability_scale=1.0, difficulty_mean=dist.Normal(-0.75, 1.0), difficulty_scale=1.0)
    model = functools.partial(item_response.one_parameter, num_items=100, priors=priors)
    draws, report = answer(model, units, "person", num_steps=4000)
    draws["question_difficulty"] = draws["difficulty"] - draws["difficulty_mean"]
    draws["centered_student_ability"] = draws["ability"]
    for site in ("question_difficulty", "centered_student_ability"):
        mean, sd = reference[f"mean__{site}"], reference[f"sd__{site}"]
        off, low, high = differences(draws, {f"{site}[{i + 1}]": (mean[i], sd[i]) for i in range(len(mean))})
        assert off < 0.25
        assert low > 0.75
        assert high < 1.25
    assert not np.any(report.units["verdict"] == "FAIL"), (
        "every ability is right to 0.1 sd: none may be called a failure"
    )


def test_two_parameters(shared):
    """Twenty items of a hundred students; 144 parameters. Published ADVI: 3.5% within 0.25 sd, worst 9.7 sd.

    By the ELBO three right-hand tails stay short (ratios 0.64 to 0.72: the spread of a, the two steepest items); draws
    of the globals weighted against each other reach them.
    """
    folder = shared / "data/stat_comp/irt_2pl"
    correct = np.array(json.loads((folder / "data.json").read_text())["y"], np.int32).T
    units, family = am.units({"correct": correct}, name="student"), am.blocks(curved=True)
    objective = am.IWELBO(1, num_shared_draws=16, weigh_shared=True)
    draws, _ = answer(item_response.two_parameters, units, "person", family, num_steps=2000, objective=objective)
    draws = draws.rename({ours: theirs for theirs, ours in NAMES.items()})
    off, ratio = offsets(draws, read_reference(folder / "reference.csv"))
    print(f"{np.mean(off < 0.25):.1%} within 0.25 sd, worst {off.max():.3f}, ", end="")
    print(f"sd ratios {ratio.min():.3f} to {ratio.max():.3f}")
    assert len(off) == 144
    assert np.mean(off < 0.25) >= 0.95
    assert ratio.min() > 0.75
    assert ratio.max() < 1.25


def aptitude(response):
    """One parameter an item, abilities of any spread, no pooling of items."""
    priors = Priors(ability_scale=dist.HalfNormal(100.0), difficulty_mean=0.0, difficulty_scale=100.0)
    item_response.one_parameter(response, priors=priors)


def probit_aptitude(response):
    eta = numpyro.sample("eta", dist.Normal(0.0, 100.0).expand([5]).to_event(1))
    delta = numpyro.sample("delta", dist.HalfNormal(1.0).expand([5]).to_event(1))
    with numpyro.plate("person", response.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        x = delta * theta[..., None] - eta
        logits = log_ndtr(x) - log_ndtr(-x)
        numpyro.sample("response", dist.Bernoulli(logits=logits).to_event(1), obs=response)


@pytest.mark.parametrize(
    ("model", "name"), [(aptitude, "reference_1pl.csv"), (probit_aptitude, "reference_2p_probit.csv")]
)
def test_law_school_aptitude(shared, model, name):
    """Five items of a thousand students; the reference has 2,000 draws, good to 0.03 to 0.06 sd."""
    folder = shared / "data/bugs/lsat"
    data = json.loads((folder / "data.json").read_text())
    counts = np.diff(np.array(data["culm"], int), prepend=0)
    response = np.repeat(np.array(data["response"], np.int32), counts, axis=0)
    assert response.shape == (1000, 5)
    units = am.units({"response": response}, name="student")
    draws, _ = answer(model, units, "person", num_steps=3000)
    if model is aptitude:
        draws = draws.assign(alpha=draws["difficulty"], beta=draws["ability_scale"])
    off, low, high = differences(draws, read_reference(folder / name))
    assert off < 0.25
    assert low > 0.75
    assert high < 1.25


def test_verbal_aggression(shared):
    """316 persons, 24 items, one parameter, against abilities integrated by quadrature and the rest by importance."""
    y = np.load(shared / "data/tables/verbagg_matrix.npz")["y"].astype(np.int32)

    def log_density(v):
        difficulty, mean, ability_scale, difficulty_scale = v[:24], v[24], jnp.exp(v[25]), jnp.exp(v[26])
        logits = ability_scale * NODES[::2, None] - difficulty
        each = y @ jax.nn.log_sigmoid(logits).T + (1 - y) @ jax.nn.log_sigmoid(-logits).T
        likelihood = jnp.sum(jax.nn.logsumexp(each + LOG_NODES[::2] + math.log(2), axis=1))
        prior = normal(difficulty, mean, difficulty_scale) + normal(mean, 0.0, 5.0)
        half_cauchy = -jnp.log1p((jnp.exp(v[25:]) / 2.0) ** 2) + v[25:]
        return likelihood + prior + jnp.sum(half_cauchy)

    exact = weigh(log_density, np.zeros(27), size=2**13)
    print(f"\nexact by {exact.ess:.0f} draws; ", end="")
    assert exact.ess > 2000
    reference = exact.moments(
        lambda v: (
            {f"difficulty[{k + 1}]": v[:, k] for k in range(24)}
            | {"difficulty_mean": v[:, 24], "ability_scale": np.exp(v[:, 25]), "difficulty_scale": np.exp(v[:, 26])}
        )
    )
    units = am.units({"correct": y}, name="person")
    draws, report = answer(item_response.one_parameter, units, "person", num_steps=1000)
    off, low, high = differences(draws, reference)
    assert off < 0.15
    assert low > 0.85
    assert high < 1.15
    assert report.verdict != "FAIL"
