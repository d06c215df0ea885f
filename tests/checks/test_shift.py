"""Are units unlike the training units flagged, and those like them hardly ever, from few or many units, of any form?"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.artifact import read_artifact, write_artifact
from amortax.checks.cloud import COORDINATES, SHARE, Cloud, cloud_of
from amortax.checks.shift import reference_of
from amortax.checks.shift_verdicts import shift_reasons, with_shifts

WEIGHTS = am.Checks(num_samples=100, simulated_units=0, gap_units=0, predictive_draws=0)


def correlated(rng, count, size):
    """Normal points whose coordinates share three causes."""
    weight = np.random.default_rng(99).standard_normal((3, size))
    return rng.standard_normal((count, 3)) @ weight + 0.5 * rng.standard_normal((count, size)) + np.arange(size) % 3


def heavy(rng, count, size):
    return rng.standard_t(3, (count, size))


def counts(rng, count, size):
    return rng.poisson(0.3, (count, size)).astype(float)


@pytest.mark.parametrize(
    ("draw", "count", "size"),
    [(correlated, 10_000, 10), (correlated, 75, 6), (correlated, 40, 20), (correlated, 1000, 600), (heavy, 3000, 5)],
)
def test_the_limits_hold_for_points_that_the_cloud_never_saw(draw, count, size):
    """Averaged over clouds: each limit is an estimate, from few points a rough one."""
    shares = []
    for seed in range(2 if size > 100 else 20):
        rng = np.random.default_rng(seed)
        cloud = cloud_of(draw(rng, count, size))
        shares.append(np.mean(cloud.judge(draw(rng, 4000, size))[0] > 1))
    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
    print(f"{draw.__name__} {count} x {size}: {np.mean(shares):.4f} ± {error:.4f} flagged, at most {max(shares):.4f}")
    assert np.mean(shares) <= 2 * SHARE
    assert max(shares) <= 0.04


@pytest.mark.parametrize(("count", "size"), [(10_000, 10), (75, 6), (40, 20), (2000, 700)])
def test_ten_times_the_value_is_seen_and_how_far(count, size):
    rng = np.random.default_rng(0)
    cloud = cloud_of(correlated(rng, count, size))
    far, chance = cloud.judge(10 * correlated(rng, 1000, size))
    assert np.mean(far > 1) >= 0.99
    assert np.median(far) > 3
    assert np.median(chance) < 1e-4
    assert np.all(chance[far <= 1] == 1)
    assert np.all(chance[far > 1] <= SHARE)


def test_one_coordinate_among_hundreds_is_seen():
    rng = np.random.default_rng(0)
    size = COORDINATES + 188
    cloud = cloud_of(rng.standard_normal((2000, size)))
    points = rng.standard_normal((700, size))
    points[np.arange(700), np.arange(700)] += 12
    assert np.mean(cloud.judge(points)[0] > 1) >= 0.95


def test_a_few_corrupted_training_units_hide_no_others():
    rng = np.random.default_rng(0)
    points = correlated(rng, 2000, 8)
    points[::500] *= 1e6
    assert np.mean(cloud_of(points).judge(10 * correlated(rng, 500, 8))[0] > 1) >= 0.98


def test_constant_and_missing_coordinates_are_finite():
    points = np.random.default_rng(0).standard_normal((50, 4))
    points[:, 1], points[:, 2], points[::2, 3] = 7.0, np.nan, np.nan
    cloud = cloud_of(points)
    moved = points[:3].copy()
    moved[:, 1] = 9.0
    assert np.all(np.isfinite(cloud.judge(points)[0]))
    assert np.all(cloud.judge(moved)[0] > 1)
    empty = cloud_of(np.zeros((30, 0)))
    assert np.all(empty.judge(np.zeros((2, 0)))[0] == 0)
    assert np.all(cloud_of(np.zeros((30, 2))).judge(np.zeros((5, 2)))[0] <= 1)


def test_a_cloud_is_stored_as_it_is():
    cloud = cloud_of(correlated(np.random.default_rng(0), 100, 5))
    again, points = Cloud.from_arrays(cloud.to_arrays()), 3 * np.ones((2, 5))
    np.testing.assert_array_equal(again.judge(points), cloud.judge(points))
    for change in ({"limits": np.zeros(2)}, {"mean": np.zeros(4)}, {"rest": np.zeros((), np.float32)}):
        with pytest.raises(am.ArtifactError, match="cloud"):
            Cloud.from_arrays({**cloud.to_arrays(), **change})


def school(score, kind, hours=None):
    """Pupils of schools: a ragged set of scores, with hours as a covariate, and a kind of school."""
    effect = numpyro.sample("effect", dist.Normal(0, 1).expand([4]).to_event(1))
    with numpyro.plate("school", score.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(effect[kind[:, None]], 1.0))
        with numpyro.plate("pupil", score.shape[1], dim=-1):
            numpyro.sample("score", dist.Normal(level + hours, 1.0), obs=score)


def schools(rng, count, factor=1.0, kinds=3, least=2):
    sizes = rng.integers(least, 12, count)
    hours = [rng.uniform(0, 2, n).astype(np.float32) for n in sizes]
    level = rng.standard_normal(count)
    scores = [
        (factor * (a + h + rng.standard_normal(len(h)))).astype(np.float32) for a, h in zip(level, hours, strict=True)
    ]
    return {"score": scores, "hours": hours, "kind": rng.integers(0, kinds, count)}


@pytest.fixture(scope="module")
def trained():
    data = schools(np.random.default_rng(0), 300)
    plan = am.amortize(school, data, plate="school")
    return am.fit(plan, data, key=jax.random.key(0), run=am.Run(num_steps=100, progress=False)), data


def test_ragged_units_far_from_training_are_flagged_and_named(trained):
    posterior, data = trained
    rng = np.random.default_rng(1)
    clean = posterior.check(schools(rng, 400), training=data, key=jax.random.key(1), checks=WEIGHTS)
    print(f"clean: {np.mean(clean.units['shift'] != ''):.4f} shifted")
    assert np.mean(clean.units["shift"] != "") <= 0.03
    assert not any("shift" in reason.code for reason in clean.reasons)
    far = posterior.check(schools(rng, 60, factor=10), key=jax.random.key(1), checks=WEIGHTS)
    assert np.mean(far.units["input_shift"] > 1) >= 0.95
    assert {"score"} == set(far.units["outside"]) - {""}
    assert "input-shift" in {reason.code for reason in far.reasons}
    assert np.all(far.units["verdict"][far.units["shift"] != ""] != "PASS")


def test_one_far_unit_alone_is_enough_for_a_warning(trained):
    report = trained[0].check(schools(np.random.default_rng(2), 1, factor=30), key=jax.random.key(1), checks=WEIGHTS)
    assert report.units["shift"][0] == "input-shift"
    assert "input-shift" in {reason.code for reason in report.reasons}
    assert report.verdict != "PASS"


def test_a_category_that_was_never_seen_is_named(trained):
    data = schools(np.random.default_rng(3), 5)
    data["kind"][2] = 3
    report = trained[0].check(data, key=jax.random.key(1), checks=WEIGHTS)
    assert report.units["shift"].tolist()[2] == "unseen-category"
    assert report.units["outside"][2] == "kind"
    assert "unseen-category" in {reason.code for reason in report.reasons}


def test_neither_padding_nor_chunks_change_a_distance(trained, monkeypatch):
    posterior, _ = trained
    data = schools(np.random.default_rng(4), 9)
    together = posterior.check(data, key=jax.random.key(1), checks=WEIGHTS).units
    data["score"].append(np.zeros(60, np.float32))
    data["hours"].append(np.zeros(60, np.float32))
    data["kind"] = np.append(data["kind"], 0)
    monkeypatch.setattr("amortax.chunks.UNIT_BUCKETS", (1, 4))
    longer = posterior.check(data, key=jax.random.key(1), checks=WEIGHTS).units
    for name in ("input_shift", "context_shift"):
        np.testing.assert_allclose(longer[name][:9], together[name], rtol=1e-4)


def test_the_reference_is_stored_and_old_files_load_without_one(trained, tmp_path):
    posterior, _ = trained
    path = tmp_path / "a.amx"
    posterior.save(path)
    loaded = am.load(path, model=school)
    for name, array in posterior.reference.to_arrays().items():
        np.testing.assert_array_equal(loaded.reference.to_arrays()[name], array)
    content, arrays = read_artifact(path)
    write_artifact(path, content, {n: x for n, x in arrays.items() if not n.startswith("reference.")})
    old = am.load(path, model=school)
    assert old.reference is None
    report = old.check(schools(np.random.default_rng(5), 3), key=jax.random.key(1), checks=WEIGHTS)
    assert "input_shift" not in report.units
    assert "not checked" in report.about["shift"]
    damaged = {n: x for n, x in arrays.items() if n != "reference.context.limits"}
    write_artifact(path, content, damaged)
    with pytest.raises(am.ArtifactError, match="cloud") as caught:
        am.load(path, model=school)
    assert str(path) in str(caught.value)


def test_training_on_keeps_what_the_new_units_are_like(trained):
    posterior, _ = trained
    data = schools(np.random.default_rng(6), 50, factor=10)
    again = am.fit(posterior, data, key=jax.random.key(1), num_steps=2)
    assert again.reference.ranges["score"][1] > 3 * posterior.reference.ranges["score"][1]


def test_too_few_units_keep_nothing(trained):
    posterior, data = trained
    few = posterior.answerable(data).take(slice(0, 10))
    assert reference_of(posterior.joint, posterior.guide, few) is None


def columns(count):
    blank = np.full(count, "", "U32")
    units = {"verdict": np.full(count, "PASS"), "reason": blank, "next_step": np.full(count, "none")}
    found = {name: np.full(count, 0.5) for name in ("input_shift", "context_shift")}
    return units, {**found, "shift_chance": np.ones(count), "outside": blank, "unseen": np.zeros(count, bool)}


def test_a_few_flagged_units_are_what_chance_allows():
    units, found = columns(1000)
    found["input_shift"][:10], found["shift_chance"][:10] = 1.1, 0.003
    judged = with_shifts(units, found)
    assert np.sum(judged["verdict"] == "WARN") == 10
    assert set(judged["next_step"][:10]) == {"refine"}
    assert shift_reasons(judged, "unit") == []
    found["context_shift"][:60] = 1.1
    (first, second) = shift_reasons(with_shifts(units, found), "unit")
    assert (first.code, second.code) == ("input-shift", "context-shift")
    assert "50 of 1000" in second.text


def test_shift_changes_no_verdict_of_the_weights():
    units, found = columns(2)
    units = {**units, "verdict": np.array(["FAIL", "PASS"]), "reason": np.array(["pareto-k", ""])}
    found["input_shift"][:] = 5.0
    judged = with_shifts(units, found)
    assert judged["verdict"].tolist() == ["FAIL", "WARN"]
    assert judged["reason"].tolist() == ["pareto-k", "input-shift"]
    assert with_shifts(units, {}) is units
