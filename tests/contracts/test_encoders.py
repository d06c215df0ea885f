"""What every encoder promises: sets without order, masks without trace, counts known, no units of measurement."""

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
from amortax._types import Batch, Fixed, trainable
from amortax.encoders.base import Feature, Inputs, training_statistics

SMALL = {"width": 8, "depth": 1}
SETS = {"deep_set": am.deep_set(**SMALL), "attention_set": am.attention_set(**SMALL, heads=2)}
SERIES = {
    "recurrent": am.recurrent(width=6, layers=2),
    "temporal_convolution": am.temporal_convolution(width=6, layers=2),
    "attention_sequence": am.attention_sequence(width=8, layers=2, heads=2),
}
LOOSE = {**SETS, **SERIES}  # a unit may have any number of elements
ALL = {"dense": am.dense(**SMALL), "convolution": am.convolution(channels=4, width=8), **LOOSE}

PLAIN = Inputs(
    (
        Feature("age", ()),
        Feature("visits", (3,), masked=True, response=True, positive=True),
        Feature("city", (2,), categories=7),
    )
)
IMAGES = Inputs(
    (*PLAIN.features, Feature("scan", (9, 7), response=True), Feature("photo", (5, 8, 2), masked=True, response=True))
)
SET = Inputs(
    (
        Feature("size", ()),
        Feature("dose", (None, 2), "house", 0),
        Feature("kind", (None,), "house", 0, categories=5),
        Feature("effect", (None,), "house", 0, masked=True, response=True),
    )
)
IN_TIME = Inputs(tuple(dataclasses.replace(f, time_axis=0) if f.plate else f for f in SET.features), ordered=("house",))


def inputs_of(name):
    if name in SERIES:
        return IN_TIME
    return SET if name in SETS else IMAGES if name == "convolution" else PLAIN


def units_of(name, count=40, length=5, seed=0):
    """Host arrays of some units; in sets of `length` places some have fewer elements, and some cells are missing."""
    rng = np.random.default_rng(seed)
    if name not in LOOSE:
        arrays = {
            "age": (40 + 10 * rng.standard_normal(count)).astype(np.float32),
            "visits": rng.poisson(6, (count, 3)).astype(np.int32),
            "city": rng.integers(7, size=(count, 2)).astype(np.int32),
        }
        masks = {"visits": rng.random((count, 3)) < 0.8}
        if name == "convolution":
            arrays["scan"] = (5 + 3 * rng.standard_normal((count, 9, 7))).astype(np.float32)
            arrays["photo"] = rng.random((count, 5, 8, 2)).astype(np.float32)
            masks["photo"] = rng.random((count, 5, 8, 2)) < 0.8
        return Batch(arrays, masks, {})
    lengths = rng.integers(1, length + 1, count).astype(np.int32)
    inside = np.arange(length) < lengths[:, None]
    arrays = {
        "size": rng.standard_normal(count).astype(np.float32),
        "dose": rng.standard_normal((count, length, 2)).astype(np.float32),
        "kind": rng.integers(5, size=(count, length)).astype(np.int32),
        "effect": rng.standard_normal((count, length)).astype(np.float32),
    }
    masks = {"effect": inside & (rng.random((count, length)) < 0.8)}
    return Batch(arrays, masks, dict.fromkeys(("dose", "kind", "effect"), lengths))


def with_statistics(encoder, data):
    found = Fixed(jax.tree.map(jnp.asarray, training_statistics(encoder.features.inputs, data)))
    return eqx.tree_at(lambda e: e.features.statistics, encoder, found)


def built(name, data=None):
    encoder = ALL[name].build(inputs_of(name), key=jax.random.key(0))
    return with_statistics(encoder, units_of(name) if data is None else data)


@eqx.filter_jit
def encode(encoder, batch):
    """All parts of the contexts side by side."""
    return jnp.concatenate(jax.vmap(encoder)(jax.tree.map(jnp.asarray, batch)), axis=1)


def one(batch, row):
    return jax.tree.map(lambda x: jnp.asarray(x[row]), batch)


@pytest.mark.parametrize("name", ALL)
def test_the_context_has_the_promised_size_and_a_batch_is_its_units(name):
    encoder, batch = built(name), units_of(name, count=4)
    contexts = encode(encoder, batch)
    assert contexts.shape == (4, sum(encoder.context_sizes))
    for row in range(4):
        np.testing.assert_allclose(contexts[row], np.concatenate(encoder(one(batch, row))), rtol=1e-5, atol=1e-5)
    assert np.all(contexts.std(axis=0) < 10)  # of the order of one, as the next network expects
    assert not np.allclose(contexts[0], contexts[1])


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_number_and_none_is_fixed_but_the_statistics(name):
    encoder, batch = built(name), jax.tree.map(jnp.asarray, units_of(name))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda e: jnp.sum(jnp.sin(encode(e, batch)))))(encoder)
    marked = trainable(encoder)
    trained = eqx.filter(gradient, marked)
    assert len(jax.tree.leaves(trained)) == len(jax.tree.leaves(eqx.filter(encoder, marked)))
    for leaf in jax.tree.leaves(trained):
        assert np.all(np.isfinite(leaf))
        assert np.any(np.asarray(leaf) != 0)
    for table in trained.features.embeddings.values():
        assert np.all(np.any(np.asarray(table) != 0, axis=1))  # every category
    assert not jax.tree.leaves(eqx.filter(encoder.features.statistics, marked.features.statistics))


@pytest.mark.parametrize("name", ALL)
def test_values_under_the_mask_change_no_bit(name):
    encoder, batch = built(name), units_of(name)
    response = {"dense": "visits", "convolution": "photo"}.get(name, "effect")
    hidden = ~batch.masks[response]
    assert hidden.any()
    known = encode(encoder, batch)
    for odd in (0, -1, 7, np.iinfo(np.int32).max) if name == "dense" else (0.0, 1e38, -1e38, np.nan, np.inf):
        arrays = {**batch.arrays, response: np.where(hidden, odd, batch.arrays[response])}
        arrays[response] = arrays[response].astype(batch.arrays[response].dtype)
        if name in LOOSE:  # beyond a unit's own elements nothing at all counts
            beyond = np.arange(5) >= batch.lengths["dose"][:, None]
            arrays["dose"] = np.where(beyond[..., None], odd, arrays["dose"]).astype(np.float32)
            arrays["kind"] = np.where(beyond, 10**6, arrays["kind"]).astype(np.int32)
        np.testing.assert_array_equal(encode(encoder, Batch(arrays, batch.masks, batch.lengths)), known)


@pytest.mark.parametrize("name", SETS)
def test_the_order_of_the_elements_does_not_count_and_their_values_do(name):
    encoder, batch = built(name), units_of(name)
    full = Batch(batch.arrays, batch.masks, dict.fromkeys(batch.lengths, np.full(40, 5, np.int32)))
    order = np.array([3, 0, 4, 1, 2])
    along = {key: x if key == "size" else x[:, order] for key, x in full.arrays.items()}
    masks = {key: x[:, order] for key, x in full.masks.items()}
    known = encode(encoder, full)
    np.testing.assert_allclose(encode(encoder, Batch(along, masks, full.lengths)), known, rtol=1e-5, atol=1e-5)
    mixed = encode(encoder, Batch({**along, "dose": full.arrays["dose"]}, masks, full.lengths))
    assert np.abs(mixed - known).max() > 1e-3  # rows are seen as rows: one column alone out of order is other data


@pytest.mark.parametrize("name", LOOSE)
def test_padding_changes_nothing(name):
    encoder, batch = built(name), units_of(name)
    more = {k: x if k == "size" else np.concatenate([x, *[x[:, -1:]] * 45], axis=1) for k, x in batch.arrays.items()}
    masks = {k: np.concatenate([x, np.zeros((40, 45), bool)], axis=1) for k, x in batch.masks.items()}
    known, padded = encode(encoder, batch), encode(encoder, Batch(more, masks, batch.lengths))
    assert np.abs(padded - known).max() <= 1e-6 * np.abs(known).max()


@pytest.mark.parametrize("name", LOOSE)
def test_padding_is_known_by_the_lengths_alone(name):
    # A set of covariates has no mask: its lengths say where it ends.
    inputs = Inputs((Feature("dose", (None, 2), "house", 0, time_axis=0 if name in SERIES else None),))
    encoder, rng = LOOSE[name].build(inputs, key=jax.random.key(0)), np.random.default_rng(6)
    dose, lengths = rng.standard_normal((4, 5, 2)).astype(np.float32), np.array([0, 1, 3, 5], np.int32)
    known = encode(encoder, Batch({"dose": dose}, {}, {"dose": lengths}))
    other = np.where((np.arange(5) < lengths[:, None])[..., None], dose, 1e9).astype(np.float32)
    np.testing.assert_array_equal(encode(encoder, Batch({"dose": other}, {}, {"dose": lengths})), known)


@pytest.mark.parametrize("name", LOOSE)
def test_an_empty_set_is_finite_with_its_gradient(name):
    encoder, batch = built(name), units_of(name)
    for length, mask in ((0, batch.masks["effect"]), (5, np.zeros((40, 5), bool))):  # no elements, none that tells
        empty = Batch(batch.arrays, {"effect": mask}, dict.fromkeys(batch.lengths, np.full(40, length, np.int32)))
        assert np.all(np.isfinite(encode(encoder, empty)))
        first = one(empty, 0)
        gradient = eqx.filter_grad(lambda e, first=first: sum(map(jnp.sum, e(first))))(encoder)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", LOOSE)
def test_the_number_of_elements_is_known(name):
    # The same element once, twice, ten times: without the count no precision could be right.
    encoder, batch = built(name), units_of(name, count=1, length=10)
    same = {k: x if k == "size" else np.repeat(x[:, :1], 10, axis=1) for k, x in batch.arrays.items()}
    contexts = []
    for length in (1, 2, 10):
        mask = {"effect": np.arange(10)[None] < length}
        unit = Batch(same, mask, dict.fromkeys(batch.lengths, np.full(1, length, np.int32)))
        contexts.append(np.asarray(encode(encoder, unit)[0]))
    assert np.abs(contexts[0] - contexts[1]).max() > 0.1
    assert np.abs(contexts[1] - contexts[2]).max() > 0.1


@pytest.mark.parametrize("name", ALL)
def test_units_of_measurement_are_forgotten(name):
    batch = units_of(name)
    numbers = [f for f in inputs_of(name).features if not f.categories and not f.positive]
    arrays = dict(batch.arrays)
    for feature in numbers:
        arrays[feature.name] = (1000 * arrays[feature.name] + 3).astype(np.float32)
    other = Batch(arrays, batch.masks, batch.lengths)
    known = encode(built(name, batch), batch)
    np.testing.assert_allclose(encode(built(name, other), other), known, rtol=1e-4, atol=1e-4)
    assert np.abs(encode(built(name, batch), other) - known).max() > 1  # not by ignoring the numbers


def convolved(filtered, image):
    """One filter by the definition of a convolution, in loops: zeros around, as many before as after or one less."""
    weight, bias, stride = np.asarray(filtered.weight), np.asarray(filtered.bias), filtered.stride
    height, width = (-(-n // stride) for n in image.shape[:2])
    more = [max((out - 1) * stride + 3 - n, 0) for out, n in zip((height, width), image.shape, strict=False)]
    padded = np.pad(image, [(n // 2, n - n // 2) for n in more] + [(0, 0)])
    rows = [
        padded[stride * i : stride * i + 3, stride * j : stride * j + 3] for i in range(height) for j in range(width)
    ]
    return (np.einsum("pijc,ijco->po", np.stack(rows), weight) + bias).reshape(height, width, -1)


def silu(x):
    return x / (1 + np.exp(-x))


def test_a_convolution_is_that_of_its_formula():
    inputs, rng = Inputs((Feature("x", (9, 6)),)), np.random.default_rng(7)
    data = Batch({"x": (3 + 2 * rng.standard_normal((30, 9, 6))).astype(np.float32)}, {}, {})
    recipe = am.convolution(channels=3, width=5)
    encoder = with_statistics(recipe.build(inputs, key=jax.random.key(1)), data)
    image = (data.arrays["x"][0] - data.arrays["x"].mean()) / data.arrays["x"].std()  # one scale for all pixels
    image = image[..., None]
    assert len(encoder.stages[0]) == 2  # 9 -> 5 -> 3
    for stage in encoder.stages[0]:
        image = convolved(stage.halve, image)
        image = image + convolved(stage.block[1], silu(convolved(stage.block[0], silu(image))))
    hidden = silu(image).ravel() @ np.asarray(encoder.last.weights[0]) + np.asarray(encoder.last.bias)
    (context,) = encoder(one(data, 0))
    np.testing.assert_allclose(context, silu(hidden), rtol=1e-4, atol=1e-5)


def test_images_are_told_from_other_arrays_by_their_shape():
    features = (*IMAGES.features, Feature("map", (4, 4), categories=3), Feature("film", (2, 4, 4, 1)))
    features = (*features, Feature("bag", (4, 5), plate="element"))
    encoder = am.convolution().build(Inputs(features), key=jax.random.key(0))
    assert [f.name for f in encoder.features.inputs.images] == ["scan", "photo"]
    with pytest.raises(am.GuideError, match=r"am.convolution\(\) needs an image.*'age' \(\).*use am.dense"):
        am.convolution().build(PLAIN, key=jax.random.key(0))
    with pytest.raises(am.GuideError, match=r"am.convolution\(\) reads arrays of fixed size.*use am.deep_set"):
        am.convolution().build(SET, key=jax.random.key(0))


def along_plates(image, pattern):
    with numpyro.plate("unit", image.shape[0], dim=-3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", image.shape[1], dim=-2), numpyro.plate("column", image.shape[2], dim=-1):
            numpyro.sample("pixel", dist.Normal(z * pattern, 1.0), obs=image)


def as_an_event(image, pattern):
    with numpyro.plate("unit", image.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("pixels", dist.Normal(z[:, None, None] * pattern, 1.0).to_event(2), obs=image)


@pytest.mark.parametrize("model", [along_plates, as_an_event])
def test_pixels_along_plates_and_in_an_event_are_the_same_image(model):
    rng = np.random.default_rng(8)
    pattern, image = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 5), (20, 6, 5)))
    data, bound = {"image": image}, functools.partial(model, pattern=pattern)
    plan = am.amortize(bound, data, plate="unit", encoder=am.convolution(channels=2, width=4))
    assert [f.name for f in plan.skeleton().encoder.features.inputs.images] == ["image"]
    assert am.fit(plan, data, key=jax.random.key(0), num_steps=1).encode(data).shape == (20, 4)
    flat = functools.partial(model, pattern=np.ones((6, 5), np.float32))
    if model is along_plates:  # pixels that may change places are a set
        with pytest.raises(am.GuideError, match="'image' .* a set: use"):
            am.amortize(flat, data, plate="unit", encoder=am.convolution())


@pytest.mark.parametrize("plate", [None, "house"])
def test_each_column_is_on_its_own_scale(plate):
    # Age in years beside income in cents: changing the unit of one column must leave the other as it was.
    shape = (3,) if plate is None else (None, 3)
    inputs = Inputs((Feature("x", shape, plate),))
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 3) if plate is None else (50, 4, 3)) + 1
    factor = np.array([1.0, 1e6, 1e-4])
    first, second = (training_statistics(inputs, Batch({"x": value}, {}, {}))["x"] for value in (x, factor * x))
    np.testing.assert_allclose(second["scale"], factor * first["scale"], rtol=1e-5)
    np.testing.assert_allclose(second["center"], factor * first["center"], rtol=1e-5)
    standard = (factor * x - second["center"]) / second["scale"]
    np.testing.assert_allclose(standard.reshape(-1, 3).std(axis=0), 1, atol=0.15)


def test_statistics_are_of_real_values_alone():
    batch = units_of("deep_set")
    mask = batch.masks["effect"]
    odd = {**batch.arrays, "effect": np.where(mask, batch.arrays["effect"], 1e9).astype(np.float32)}
    found = training_statistics(SET, Batch(odd, batch.masks, batch.lengths))["effect"]
    real = batch.arrays["effect"][mask].astype(np.float64)
    np.testing.assert_allclose(found["center"], real.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["scale"], real.std(), rtol=1e-5)


def test_padded_covariates_do_not_enter_the_statistics():
    # `dose` has no mask the encoder would look at; its real values are those within the unit's length.
    batch = units_of("deep_set")
    inside = np.arange(5) < batch.lengths["dose"][:, None]
    masks = {**batch.masks, "dose": np.repeat(inside[..., None], 2, 2)}
    found = training_statistics(SET, Batch(batch.arrays, masks, batch.lengths))
    real = batch.arrays["dose"][inside].astype(np.float64)
    np.testing.assert_allclose(np.ravel(found["dose"]["center"]), real.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_constant_and_nearly_constant_columns_are_harmless():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((10_000, 3)).astype(np.float32)
    x[:, 1] = 0.1
    x[:, 2] = 0.0
    x[7, 2] = 1.0  # one unit in ten thousand differs: its sd is 0.01
    inputs = Inputs((Feature("x", (3,)),))
    found = training_statistics(inputs, Batch({"x": x}, {}, {}))["x"]
    standard = (x - found["center"]) / found["scale"]
    assert np.all(np.isfinite(standard))
    np.testing.assert_allclose(standard[:, 1], 0, atol=1e-6)
    assert np.abs(standard).max() <= 31  # the rare value does not explode
    encoder = with_statistics(am.dense(**SMALL).build(inputs, key=jax.random.key(0)), Batch({"x": x}, {}, {}))
    assert np.all(np.isfinite(encode(encoder, Batch({"x": x[:4]}, {}, {}))))


def test_categories_are_embedded_not_measured():
    encoder = built("dense")
    batch = units_of("dense", count=1)
    contexts = []
    for code in range(7):
        arrays = {**batch.arrays, "city": np.full((1, 2), code, np.int32)}
        contexts.append(np.asarray(encode(encoder, Batch(arrays, batch.masks, {}))[0]))
    size = PLAIN.features[2].embedding_size
    assert encoder.features.embeddings["city"].shape == (7, size)
    assert "city" not in encoder.features.statistics.value
    steps = np.diff(np.stack(contexts)[:, -2 * size :], axis=0)
    assert np.abs(steps - steps[0]).max() > 0.1  # code 2 is not twice code 1


def test_counts_are_seen_on_the_log_scale_too():
    encoder = built("dense")
    known = encoder.features.statistics.value["visits"]
    unit = one(units_of("dense", count=1), 0)
    unit = Batch({**unit.arrays, "visits": jnp.array([0, 5, 10**6])}, {"visits": jnp.ones(3, bool)}, {})
    plain = np.asarray(encoder.features.plain(unit))
    numbers = plain[1 : 1 + 3 * 3].reshape(3, 3)  # (number, logarithm, present) of each
    expected = (np.log1p([0, 5, 1e6]) - known["log_center"]) / known["log_scale"]
    np.testing.assert_allclose(numbers[:, 1], expected, rtol=1e-5)
    np.testing.assert_array_equal(numbers[:, 2], 1)
    assert numbers[2, 0] > 1e4 > 100 > numbers[2, 1]


def test_a_recipe_for_other_data_is_an_error():
    key = jax.random.key(0)
    expected = r"\['dose', 'kind', 'effect'\] differ in length along plate 'house'; use am.deep_set"
    with pytest.raises(am.GuideError, match=expected):
        am.dense().build(SET, key=key)
    for name, recipe in SETS.items():
        with pytest.raises(am.GuideError, match=rf"am.{name}\(\) needs arrays along an inner plate.*use am.dense"):
            recipe.build(PLAIN, key=key)
