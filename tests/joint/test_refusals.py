"""What can't be amortized is refused before training, by name, with the reason and with what to write instead."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from amortax import GuideError, ModelError, amortize, dense, full, low_rank, newton

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=5).astype(np.float32)
SQUARE = RNG.normal(size=(3, 3)).astype(np.float32)
RAGGED = [RNG.normal(size=n).astype(np.float32) for n in (1, 4, 2, 3)]


def refusal(model, data, error=ModelError, plate="u", **recipes):
    with pytest.raises(error) as caught:
        amortize(model, data, plate=plate, **recipes)
    return str(caught.value)


def simple(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z + b * x, 1.0), obs=y)


def long_format(county, y):
    with numpyro.plate("u", 3):
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(alpha[county], 1.0), obs=y)


def literal_size(y):
    with numpyro.plate("u", 5):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def subsampled(y):
    with numpyro.plate("u", y.shape[0], subsample_size=2) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def undimmed(x, y):
    with numpyro.plate("u", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", x.shape[1]):
            numpyro.sample("y", dist.Normal(z * x, 1.0), obs=y)


def outside(x, y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    numpyro.sample("total", dist.Normal(0.0, 1.0), obs=x.sum())


def outside_latent(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    numpyro.factor("tie", -(jnp.sum(z) ** 2))


def latent_by_shape(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([y.shape[0]]))
    with numpyro.plate("u", y.shape[0]):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def parameter_per_unit(y):
    with numpyro.plate("u", y.shape[0]):
        a = numpyro.param("a", jnp.zeros(y.shape[0]))
        z = numpyro.sample("z", dist.Normal(a, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def global_per_padded_place(y):
    with numpyro.plate("item", y.shape[1]):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", y.shape[0], dim=-2), numpyro.plate("e", y.shape[1], dim=-1):
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


def summed_deterministic(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    numpyro.deterministic("mean", z.mean())


def crossed_deterministic(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    numpyro.deterministic("gaps", z[:, None] - z)


def unobserved(x):
    with numpyro.plate("u", x.shape[0]):
        numpyro.sample("z", dist.Normal(x, 1.0))


def discrete_global(y):
    c = numpyro.sample("c", dist.Categorical(jnp.ones(3) / 3))
    with numpyro.plate("u", y.shape[0]):
        numpyro.sample("y", dist.Normal(c, 1.0), obs=y)


def tied_in_ragged_plate(y):
    with numpyro.plate("u", y.shape[0], dim=-2):
        with numpyro.plate("e", y.shape[1], dim=-1):
            w = numpyro.sample("w", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(w, 1.0), obs=y)
        numpyro.sample("z", dist.Normal(w.mean(axis=1, keepdims=True), 1.0))


def raising(y):
    with numpyro.plate("u", y.shape[0]):
        raise KeyError("spice")


def branching(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        if y[0] > 0:
            z = 2 * z
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def positional(y, /):
    simple(y, y)


def many(*arrays):
    simple(*arrays)


def stateful(y):
    numpyro.primitives.mutable("batch_stats", {"mean": jnp.zeros(2)})
    simple(y, y)


def scanning_in_plate(y):
    with numpyro.plate("u", y.shape[0]):
        scan(lambda state, _: (state, None), 0.0, None, length=3)


def on_a_sphere(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.ProjectedNormal(jnp.zeros(3)))
        numpyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)


def complex_global(y):
    c = numpyro.sample("c", dist.ImproperUniform(constraints.complex, (), ()))
    with numpyro.plate("u", y.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.real(c), 1.0), obs=y)


def nothing_sampled(y):
    with numpyro.plate("u", y.shape[0]):
        numpyro.deterministic("d", y)


def ragged(y):
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def fixed_length(w, y):
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z * jnp.arange(4.0), 1.0), obs=y)


def globals_only(y):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", y.shape[0]):
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


X, XY, Y, R = {"x": FLAT}, {"x": FLAT, "y": FLAT}, {"y": FLAT}, {"y": RAGGED}
NESTED = ["with numpyro.plate(", "x.shape[0], dim=-2)", 'from_table(table, unit="u"']
CASES = [
    (long_format, {"county": np.array([0, 1, 2, 0, 1]), **Y}, ["plate 'u' has 3 elements", "5 units", *NESTED]),
    (literal_size, Y, ["plate 'u' has 5 elements when the data has one unit", "literal", "x.shape[0]"]),
    (subsampled, Y, ["plate 'u' has its own subsample_size=2 of 5", "batch_size= to fit"]),
    (undimmed, {"x": SQUARE, "y": SQUARE}, ["site 'y' has log densities of shape (3, 3)", "dim=-2", "x[:, None]"]),
    (undimmed, {"x": SQUARE[:2], "y": SQUARE[:2]}, ["model 'undimmed', line", "dim=-2"]),
    (outside, XY, ["site 'total' is outside plate 'u' but depends on 'x'", "functools.partial"]),
    (outside_latent, Y, ["site 'tie' is outside plate 'u' but depends on 'z'", "move it inside the plate"]),
    (latent_by_shape, Y, ["site 'z' has shape (5,) when the number of units grows", "inside plate 'u'"]),
    (parameter_per_unit, Y, ["parameter 'a' has shape", "number of units", "numpyro.sample site inside plate 'u'"]),
    (global_per_padded_place, R, ["site 'b' has shape (5,) when the padded length grows", "same for every unit"]),
    (summed_deterministic, Y, ["deterministic 'mean' is one value for all units but depends on 'z'", "leave it out"]),
    (crossed_deterministic, Y, ["deterministic 'gaps' has shape (5, 5) for all units", "from the posterior's draws"]),
    (unobserved, X, ["no site inside plate 'u' is observed", "obs=", "['x']"]),
    (discrete_global, Y, ["site 'c' is a discrete latent outside plate 'u'", "upper_bound=2", "observe it"]),
    (
        tied_in_ragged_plate,
        R,
        ["site 'w' is a latent inside the ragged plate 'e'", "'z' depends on 'w' of all"],
    ),
    (positional, Y, ["model 'positional' has positional-only arguments", "give every argument a name"]),
    (many, XY, ["model 'many' has positional-only arguments"]),
    (stateful, Y, ["site 'batch_stats' is mutable", "use a module without it"]),
    (scanning_in_plate, Y, ["a scan stands inside plate 'u'", "put the plate into the body of the scan"]),
    (on_a_sphere, Y, ["site 'z' has support Sphere()", "no bijection", "biject_to knows"]),
    (complex_global, Y, ["site 'c' has support Complex()", "no bijection"]),
    (nothing_sampled, Y, ["model 'nothing_sampled' has no sample site"]),
    (simple, X, ["site 'y' is observed through the argument 'y'", "['x']", "functools.partial(model, y=None)"]),
    (simple, Y, ["model 'simple' needs the arguments ['x']", "['y']", "functools.partial"]),
    (simple, {**XY, "w": FLAT}, ["data has ['w']", "model 'simple' does not take", "['x', 'y']", "drop or rename"]),
    (simple, {"x": FLAT, "Y": FLAT}, ["data has ['Y']", "it takes ['x', 'y']", "did you mean 'y'?"]),
    (fixed_length, {"w": FLAT[:4], **R}, ["model 'fixed_length', line", "Incompatible shapes"]),
]


@pytest.mark.parametrize(("model", "data", "fragments"), CASES, ids=[model.__name__ for model, *_ in CASES])
def test_is_refused_by_name_with_reason_and_remedy(model, data, fragments):
    message = refusal(model, data)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_a_wrong_plate_name_lists_the_plates():
    message = refusal(simple, XY, plate="county")
    assert "model 'simple' has no plate 'county'; its plates are ['u']" in message
    assert "give plate=" in message


def test_the_plate_of_a_units_elements_is_refused_with_the_plate_around_it():
    message = refusal(ragged, R, plate="e")
    assert "plate 'e' is inside plate 'u', whose elements are the units of the data" in message
    assert "give plate='u'" in message


def test_a_forgotten_discrete_response_is_called_forgotten_not_a_discrete_latent():
    def model(x, y=None):
        with numpyro.plate("u", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Poisson(jnp.exp(z)), obs=y)

    assert "site 'y' is observed through the argument 'y'" in refusal(model, X)


@pytest.mark.parametrize(("model", "reason"), [(raising, "raised KeyError: 'spice'"), (branching, "branches on")])
def test_what_the_model_raises_names_its_own_line(model, reason):
    line = model.__code__.co_firstlineno + (2 if model is raising else 3)
    message = refusal(model, Y)
    assert f"model '{model.__name__}', line {line} of test_refusals.py," in message
    assert reason in message


RECIPES = [
    (ragged, R, {"encoder": dense()}, ["am.dense()", "['y'] differ in length along plate 'e'", "am.deep_set()"]),
    (simple, XY, {"shared_family": low_rank(7)}, ["low_rank(rank=7) on 1 dimensions"]),
    (ragged, R, {"shared_family": full()}, ["shared_family=full(", "no global latents", "leave it out"]),
    (ragged, R, {"head": newton()}, ["head=newton(", "no global latents", "leave it out"]),
    (globals_only, Y, {"family": full()}, ["family=full(", "no local latents"]),
]


@pytest.mark.parametrize(("model", "data", "recipes", "fragments"), RECIPES)
def test_a_recipe_that_does_not_fit_is_refused_by_its_name(model, data, recipes, fragments):
    message = refusal(model, data, GuideError, **recipes)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
