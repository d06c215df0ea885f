"""A model's structure is what is stored of it: printed, compared, read again, refused where it differs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from amortax import ArtifactError, amortize, attention_set, diagonal, units
from amortax.joint.reread import reread
from amortax.joint.structure import Structure
from amortax.plan import Plan

LENGTHS = (1, 4, 2)
DATA = {
    "dose": [np.linspace(0, 1, n).astype(np.float32) for n in LENGTHS],
    "drug": [np.arange(n) % 3 for n in LENGTHS],
    "age": np.array([0.1, -0.3, 0.5], np.float32),
    "count": [np.arange(n) for n in LENGTHS],
}


def trial(dose, drug, age, count, scale=1.0, kinds=3, extra=False, prior=dist.Normal):
    slope = numpyro.param("slope", jnp.zeros(2), constraint=constraints.real)
    effect = numpyro.sample("effect", prior(0.0, scale).expand([kinds]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("patient", dose.shape[0], dim=-2):
        frailty = numpyro.sample("frailty", dist.Normal(age[:, None] * slope[0], tau))
        if extra:
            numpyro.sample("bias", dist.Normal(0.0, 1.0))
        with numpyro.plate("visit", dose.shape[1], dim=-1):
            numpyro.sample("count", dist.Poisson(jnp.exp(frailty + effect[drug] * dose)), obs=count)


@pytest.fixture(scope="module")
def plan():
    return amortize(trial, DATA, plate="patient")


def test_a_structure_says_what_the_model_says(plan):
    structure = plan.structure
    assert [(s.name, s.role, s.dims) for s in structure.sites] == [
        ("effect", "global", (None,)),
        ("tau", "global", ()),
        ("frailty", "local", ()),
        ("count", "observed", ("visit",)),
    ]
    assert (structure.size("global"), structure.size("local")) == (4, 1)
    assert structure.params == ("slope",)
    assert [(p.name, p.ragged, p.exchangeable) for p in structure.plates] == [("visit", True, True)]
    facts = {a.name: (a.role, a.plate, a.ragged, a.masked, a.categories, a.positive) for a in structure.arguments}
    assert facts == {
        "dose": ("covariate", "visit", True, True, None, False),
        "drug": ("covariate", "visit", True, True, 3, False),
        "age": ("covariate", None, False, False, None, False),
        "count": ("observed", "visit", True, True, None, True),
    }
    assert structure.argument("count").needed == ""
    assert "covariate" in structure.argument("dose").needed


def test_packing_is_the_inverse_of_unpacking(plan):
    flat = jnp.arange(4.0)
    values = plan.structure.unpack("global", flat)
    assert {name: x.shape for name, x in values.items()} == {"effect": (3,), "tau": ()}
    np.testing.assert_array_equal(plan.structure.pack("global", values), flat)


def test_plan_and_structure_survive_json(plan):
    chosen = amortize(trial, DATA, plate="patient", encoder=attention_set(), family=diagonal())
    for each in (plan, chosen):
        assert Plan.from_json(json.loads(json.dumps(each.to_json())), trial) == each
        assert Structure.from_json(json.loads(json.dumps(each.structure.to_json()))) == each.structure
    spec = json.loads(json.dumps(plan.structure.to_json()))
    spec["colour"] = "red"
    with pytest.raises(ArtifactError, match="written by another version"):
        Structure.from_json(spec)


def test_the_plan_prints_what_is_amortized_and_by_what(plan):
    text = str(plan)
    for piece in (
        "model trial, amortized over plate 'patient'; observes count",
        "globals",
        "effect, tau",
        "per patient",
        "frailty",
        "deep_set()",
        "full() placed by newton()",
        "the encoder sees dose (set along visit), drug (set along visit), age, count (set along visit)",
        "learned by maximum likelihood: slope",
    ):
        assert piece in text
    assert "can't be simulated" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_the_same_model_is_accepted_whatever_the_number_of_units_and_lengths(plan):
    params = reread(trial, plan.structure, "file.amx")[1]
    assert jax.tree.map(lambda x: x.shape, params) == {"slope": (2,)}
    more = {name: [np.resize(x, 2 * len(x) + 1) for x in a] * 2 for name, a in DATA.items() if name != "age"}
    again = amortize(trial, {**more, "age": np.zeros(6, np.float32)}, plate="patient")
    assert plan.structure.difference(again.structure) == ""


def changed(**options):
    def other(dose, drug, age, count):
        trial(dose, drug, age, count, **options)

    return other


def renamed(dose, drug, age, count):
    numpyro.sample("shift", dist.Normal(0.0, 1.0))
    changed()(dose, drug, age, count)


def another_parameter(dose, drug, age, count):
    numpyro.param("intercept", jnp.zeros(()))
    changed()(dose, drug, age, count)


def another_plate(dose, drug, age, count):
    with numpyro.handlers.scope(prefix="a", hide_types=["param"]):
        trial(dose, drug, age, count)


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (changed(kinds=4), "site 'effect'"),
        (changed(extra=True), "site 'bias': stored none"),
        (changed(prior=dist.LogNormal), "site 'effect': stored"),
        (renamed, "site 'shift': stored none"),
        (another_parameter, r"parameters: stored \('slope',\), this model has \('intercept', 'slope'\)"),
        (lambda dose, drug, age: None, "model '<lambda>'"),
        (another_plate, "plate"),
    ],
)
def test_another_model_is_refused_with_the_difference(plan, model, difference):
    with pytest.raises(
        ArtifactError, match=rf"file.amx: model '.*' is not the one that was trained[;:] .*{difference}"
    ):
        reread(model, plan.structure, "file.amx")


def test_another_prior_scale_is_the_same_structure(plan):
    assert reread(changed(scale=3.0), plan.structure, "file.amx")


def test_supports_are_stored_in_words_without_traces_of_reading():
    def model(n, y):
        tau = numpyro.sample("tau", dist.Uniform(0.0, 2.0))
        with numpyro.plate("u", y.shape[0]):
            numpyro.sample("z", dist.Uniform(-tau, tau).expand([2]).to_event(1))
            numpyro.sample("y", dist.Binomial(n, 0.3), obs=y)

    plan = amortize(model, units({"n": np.array([3, 4]), "y": np.array([1, 2])}), plate="u")
    assert [s.support for s in plan.structure.sites] == [
        "Interval(lower_bound=0.0, upper_bound=2.0)",
        "Interval(lower_bound=computed, upper_bound=computed)",
        "IntegerInterval(lower_bound=0, upper_bound=computed)",
    ]
    assert reread(model, plan.structure, "file.amx")[1] == {}


def ragged_beside_a_vector(y, w):
    with numpyro.plate("county", y.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(jnp.sum(w, axis=1)[:, None], 1.0))
        with numpyro.plate("house", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(level, 1.0), obs=y)


def classes_of_three(y, x):
    with numpyro.plate("school", y.shape[0], dim=-3), numpyro.plate("class", y.shape[1], dim=-2):
        own = numpyro.sample("own", dist.Normal(0.0, 1.0))
        with numpyro.plate("pupil", y.shape[2], dim=-1):
            numpyro.sample("y", dist.Normal(own + x[:, None], 1.0), obs=y)


def test_an_array_as_long_as_the_longest_unit_does_not_lie_along_a_ragged_plate():
    data = {"y": [np.ones(3), np.ones(1)], "w": np.ones((2, 3))}
    structure = amortize(ragged_beside_a_vector, data, plate="county").structure
    assert (structure.argument("w").plate, structure.argument("w").dims) == (None, (None,))
    data = {"y": [np.ones((3, 3)), np.ones((1, 3))], "x": np.ones((2, 3))}
    structure = amortize(classes_of_three, data, plate="school").structure
    assert structure.argument("x").dims == ("pupil",)
