"""A newcomer's mistakes: each is an error of ours that names what was given and what to give instead."""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import amortax as am
from amortax.models import factor_analysis, item_response, lda, mixed_effects, prodlda, state_space

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
DATA = {"floor": RNG.normal(size=(8, 3)), "log_radon": RNG.normal(size=(8, 3))}
pytestmark = pytest.mark.usefixtures("unchecked")


def counties(floor, log_radon=None):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("county", floor.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(1.0, tau))
        with numpyro.plate("house", floor.shape[1], dim=-1):
            numpyro.sample("log_radon", dist.Normal(level - floor, 0.7), obs=log_radon)


def study(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, np.ones(4)).to_event(1), obs=y)


def plan(**recipes):
    return am.amortize(counties, DATA, plate="county", **recipes)


@functools.cache
def planned():
    return plan()


@functools.cache
def posterior():
    return am.fit(planned(), DATA, key=KEY, num_steps=2)


@functools.cache
def whole():
    return am.amortize(study, {"y": RNG.normal(size=(20, 4))}, plate=None)


@functools.cache
def pairs():
    return am.simulate(whole(), 20, key=KEY)


def fit(**options):
    return am.fit(planned(), DATA, key=KEY, **options)


def fit_pairs(given):
    return am.fit(whole(), given, key=KEY, num_steps=1)


RECIPES = {
    "class": (lambda: plan(family=am.markov), "family='markov': expected one recipe.*write am.markov"),
    "text": (lambda: plan(family="full"), r"family='full': expected one recipe.*write am.full\("),
    "dict": (lambda: plan(family={"level": am.full()}), "family=.*expected one recipe for all that is in the block"),
    "object": (lambda: plan(family=object()), "expected one recipe"),
    "encoder class": (lambda: plan(encoder=am.recurrent), "encoder='recurrent'.*write am.recurrent"),
    "family as encoder": (lambda: plan(encoder=am.full()), r"am.full\(\) is for family= or shared_family="),
    "encoder as family": (
        lambda: plan(family=am.dense()),
        r"am.dense\(\) is for encoder=; family= takes .*am.full\(\)",
    ),
    "encoder as shared": (lambda: plan(shared_family=am.deep_set()), "is for encoder=; shared_family= takes"),
    "markov as shared": (lambda: plan(shared_family=am.markov()), r"am.markov\(\) is for family="),
    "nested as shared": (lambda: plan(shared_family=am.nested()), r"am.nested\(\) is for family="),
    "filtering as encoder": (lambda: plan(encoder=am.filtering()), "is for family= or classifier="),
    "head in words": (lambda: plan(head="newton"), "head='newton'.*write am.newton"),
    "family as head": (lambda: plan(head=am.full()), r"head= takes am.concatenate\(\), am.newton\(\)"),
    "free as family": (lambda: plan(family=am.free()), "is for encoder="),
    "transform as family": (lambda: plan(family=am.affine()), r"am.affine\(\) is for am.coupling\(transform=...\)"),
    "width 0": (lambda: am.markov(width=0), "am.markov: width must be a whole number from 1, got 0"),
    "width in words": (lambda: am.dense(width="a"), "am.dense: width must be a whole number from 1, got 'a'"),
    "depth below 0": (lambda: am.dense(depth=-1), "depth must be a whole number from 0, got -1"),
    "width below 0": (lambda: am.filtering(width=-3), "am.filtering: width must be"),
    "family of filtering": (lambda: am.filtering("x"), "am.filtering: family must be a recipe, .*got 'x'"),
    "sites": (lambda: am.exponential_family(sites="t"), "sites must be left out: amortize reads it from the model"),
    "curved": (lambda: am.blocks(curved="yes"), "curved must be True or False"),
}
FITS = {
    "model": (lambda: am.fit(counties, DATA, key=KEY), "guide must be what am.amortize.*got counties itself"),
    "objective class": (
        lambda: fit(objective=am.ELBO),
        r"objective must be one, am.ELBO\(\).*got ELBO itself; call it",
    ),
    "objective text": (lambda: fit(objective="elbo"), "got 'elbo'"),
    "optimizer text": (lambda: fit(optimizer="adam"), "optimizer must be an Optax transformation.*got 'adam'"),
    "optimizer number": (lambda: fit(optimizer=1e-3), "got 0.001"),
    "optimizer uncalled": (lambda: fit(optimizer=am.natural), "got natural itself; call it"),
    "optimizer class": (lambda: fit(optimizer=optax.adam), "got adam itself"),
    "schedule": (
        lambda: fit(optimizer=am.robbins_monro(10, 0.7)),
        r"am.natural\(rate\) where rate is am.robbins_monro",
    ),
    "rest": (lambda: am.natural(rest="adam"), "rest must be an Optax transformation"),
    "delay": (lambda: am.robbins_monro("a", 0.7), "delay must be a number from 1"),
    "run": (lambda: fit(run={"num_steps": 3}), r"run must be am.Run\("),
    "validation": (lambda: am.Run(validation=3), "validation are held-out units"),
    "progress": (lambda: am.Run(progress="no"), "progress must be True, False or None, got 'no'"),
    "one pair": (lambda: fit_pairs(({"z": [0.1]}, {"y": np.ones((1, 4))})), r"1 \(latents, data\) pairs are too few"),
}
MODELS = {
    "none": (lambda: am.amortize(None, DATA, plate="county"), "model must be a function"),
    "ability": (lambda: item_response.Priors(ability_scale=-1.0), "ability_scale must be a positive number, got -1.0"),
    "sd": (lambda: mixed_effects.Priors(sd=dist.Normal(0.0, 1.0)), "sd is a scale, and its prior Normal"),
    "sd class": (lambda: mixed_effects.Priors(sd=dist.HalfNormal), "sd must be a NumPyro distribution.*call it"),
    "innovation": (
        lambda: am.amortize(functools.partial(state_space.many, innovation=-1.0), {"y": DATA["floor"]}, plate="series"),
        "innovation must be a positive number, got -1.0",
    ),
    "doc prior": (lambda: lda.collapsed(5, doc_topic_prior=-1.0), "doc_topic_prior must be a positive number"),
    "word prior": (lambda: lda.collapsed(5, topic_word_prior=0.0), "topic_word_prior must be a positive number"),
    "topics": (lambda: lda.collapsed("5"), "num_topics must be a whole number from 1"),
    "learned topics": (lambda: lda.learned_topics(posterior()), "expected a posterior of lda.amortized"),
    "products": (lambda: prodlda.learned_topics(posterior()), "expected a posterior of prodlda.amortized"),
    "shares": (lambda: lda.amortized(3, np.ones(4), doc_topic_prior=0.0), "doc_topic_prior must be a positive number"),
    "learned of a plan": (lambda: factor_analysis.learned(planned()), "expected a posterior of ppca"),
    "dims": (lambda: am.amortize(without_dims, {"y": DATA["floor"]}, plate="unit"), "give each its dim"),
    "jax scan": (lambda: am.amortize(hidden_scan, {"y": DATA["floor"]}, plate="unit"), "control_flow.scan"),
}
TABLE = {"rat": ["a", "a", "b"], "age": [1.0, 2.0, 1.0], "weight": [1.0, 2.0, 3.0], "time": [1.0, 0.0, 1.0]}
design = functools.partial(mixed_effects.design, TABLE, group="rat", response="weight")
DATA_ERRORS = {
    "series of one axis": (
        lambda: am.amortize(state_space.many, {"y": DATA["floor"][:, 0]}, plate="series"),
        r"has shape \(8,\); expected two axes, series and steps",
    ),
    "one series": (lambda: am.amortize(state_space.many, {"y": np.ones((1, 5))}, plate="series"), "state_space.one"),
    "fixed": (lambda: design(fixed="age"), r"expected a list of columns, fixed=\['age'\]"),
    "exposure": (lambda: design(beside={"exposure": "time"}), "data\\['exposure'\\] is 0 at rat 'a', row 1"),
    "design": (lambda: mixed_effects.gaussian_priors(design()), "give the .units of the design"),
    "dict": (lambda: mixed_effects.gaussian_priors({"x": 1}), "expected Units with the arguments x and z"),
    "path": (lambda: mixed_effects.link_priors("rats.csv"), "expected Units with the arguments x and z"),
    "items": (
        lambda: am.amortize(
            functools.partial(item_response.one_parameter, num_items=3),
            {"correct": [[1, 0], [1]], "item": [[0.0, 1.0], [2.0]]},
            plate="person",
        ),
        r"data\['item'\] says which item.*give integers",
    ),
    "one document": (lambda: lda.documents(np.ones(5)), r"two axes, documents and words, got shape \(5,\)"),
    "tokens": (lambda: lda.documents([["a", "b"], ["c"]]), "words must be counted first"),
    "no documents": (lambda: lda.documents(None), "expected counts of two axes"),
    "uneven": (lambda: am.units({"y": [[[1.0, 2.0], 3.0]]}), "its lists differ in length or in depth"),
    "simulate": (lambda: am.simulate(posterior(), 5, key=KEY), "of a posterior it is posterior.plan"),
    "simulate model": (lambda: am.simulate(study, 5, key=KEY), r"must be what am.amortize\(model, data, plate=None\)"),
    "compare": (lambda: am.compare(posterior(), "x", DATA, key=KEY), "expected two posteriors, got 'x'"),
    "datatree": (lambda: am.to_datatree(posterior()), "expected draws, as posterior.sample gives them"),
    "fraction": (lambda: am.units(DATA).split("a", seed=0), "fraction must be a number, got 'a'"),
    "seed": (lambda: am.units(DATA).split(seed="a"), "seed must be a whole number from 0, got 'a'"),
    "unit": (lambda: am.from_table(TABLE, unit=["rat"], columns=["age"]), "expected the name of one column"),
    "typo": (
        lambda: posterior().predict(DATA, num_samples=2, key=KEY, at={"flor": DATA["floor"]}),
        r"at has 'flor', which is no argument of model 'counties'; it has \['floor', 'log_radon'\]",
    ),
    "longer": (lambda: sample(np.ones((1, 5))), "longer ones need a posterior that was trained on 5"),
    "shorter": (lambda: sample(np.ones((1, 2))), "fewer than 3 need a posterior trained on data with missing"),
    "one unit": (
        lambda: am.fit(whole(), pairs(), key=KEY, num_steps=1).encode({"y": np.ones(4)}),
        r"give am.units\(\[",
    ),
    "pairs in a list": (lambda: fit_pairs(list(pairs())), "pairs are a tuple of two, a dict of latents first"),
    "pairs swapped": (lambda: fit_pairs(pairs()[::-1]), "pairs are a tuple of two"),
    "dicts swapped": (lambda: fit_pairs((pairs()[1].arrays, pairs()[0])), "give the latents first, then the data"),
    "three": (lambda: fit_pairs((*pairs(), 1)), "pairs are a tuple of two"),
    "words": (lambda: fit_pairs(({"z": ["a"] * 20}, pairs()[1])), r"latents\['z'\]: expected an array of numbers"),
    "gaps": (lambda: fit_pairs((pairs()[0], {"y": np.full((20, 4), np.nan) + [[0]]})), "all 80 values are missing"),
    "gaps later": (
        lambda: fit_pairs((pairs()[0], {"y": holes()})),
        r"plan anew \(amortize\) with data that has missing",
    ),
}
FILES = {
    "model": (lambda path: am.load(path, model="m"), "model= is the function that it was trained with, got 'm'"),
    "name": (lambda path: posterior().save(3), "expected the name of a file, got 3"),
}


def without_dims(y):
    with numpyro.plate("unit", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("item", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def hidden_scan(y):
    def body(z, now):
        with numpyro.plate("unit", now.shape[0]):
            z = numpyro.sample("z", dist.Normal(z, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=now)
        return z, None

    jax.lax.scan(body, np.zeros(y.shape[0], np.float32), y.T)


def holes():
    y = RNG.normal(size=(20, 4))
    y[3] = np.nan
    return y


def sample(floor):
    return posterior().sample({"floor": floor, "log_radon": floor}, num_samples=2, key=KEY)


def cases():
    tables = ((am.GuideError, RECIPES), (am.FitError, FITS), (am.ModelError, MODELS), (am.DataError, DATA_ERRORS))
    for error, table in tables:
        for name, (call, words) in table.items():
            yield pytest.param(error, call, words, id=f"{error.__name__}-{name}")


@pytest.mark.parametrize(("error", "call", "words"), list(cases()))
def test_a_mistake_is_named(error, call, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_with_a_file_is_named(case, tmp_path):
    call, words = FILES[case]
    posterior().save(tmp_path / "a.amx")
    with pytest.raises(am.ArtifactError, match=words):
        call(tmp_path / "a.amx")


def test_a_factor_has_no_predictions():
    plan = am.amortize(lda.collapsed(2), lda.documents(np.ones((4, 3), int)), plate="document")
    trained = am.fit(plan, lda.documents(np.ones((4, 3), int)), key=KEY, num_steps=1)
    with pytest.raises(am.ModelError, match="no observed site of which there could be draws"):
        trained.predict(lda.documents(np.ones((2, 3), int)), num_samples=2, key=KEY)
