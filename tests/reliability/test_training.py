"""A training run ends as asked, survives what goes wrong once, and says what goes wrong often."""

import functools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import amortax as am
from amortax._types import trainable
from amortax.intake import as_units, to_batch
from amortax.objectives.base import AbstractObjective, Loss
from amortax.train import minibatches
from amortax.train import run as engine
from amortax.train import step as compiled
from amortax.train.initialise import initialise
from amortax.train.schedule import MOST_SETBACKS

X = (3 + 2 * np.random.default_rng(0).standard_normal((24, 3))).astype(np.float32)
DATA = {"x": X}


def model(x):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, 2))
        numpyro.sample("x", dist.Normal(z[:, None] + jnp.zeros(3), 1).to_event(1), obs=x)


def learned(x):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, 2))
        numpyro.sample("x", dist.Normal(z[:, None] + jnp.zeros(3), 1).to_event(1), obs=x)


@functools.cache
def plan(which=model):
    head = am.concatenate() if which is model else None
    return am.amortize(
        which, DATA, plate="unit", encoder=am.dense(width=8, depth=1), family=am.diagonal(width=8), head=head
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(minibatches, "BLOCK", 10)


def fit(start=None, data=DATA, seed=0, objective=None, **options):
    objective = objective or am.ELBO(num_particles=2)
    return am.fit(start or plan(), data, key=jax.random.key(seed), objective=objective, **options)


def untrained(seed=0):
    """Where `fit` with this seed starts."""
    batch = to_batch(as_units(DATA, model, "unit"))
    return initialise(plan(), batch, jax.random.split(jax.random.key(seed))[0])


def numbers(posterior):
    pair = posterior if isinstance(posterior, tuple) else (posterior.joint, posterior.guide)
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(pair, trainable(pair)))]


def same(left, right):
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


def finite(posterior):
    return all(np.all(np.isfinite(x)) for x in numbers(posterior))


@pytest.fixture
def states(monkeypatch):
    """The trained arrays after every block of the runs to come."""
    seen, real = [], engine.run_block

    def spy(fixed, state):
        state, result = real(fixed, state)
        seen.append(([np.array(x) for x in jax.tree.leaves(state.params)], int(state.step)))
        return state, result

    monkeypatch.setattr(engine, "run_block", spy)
    return seen


class Faulty(AbstractObjective):
    """The ELBO, but at a share of the steps its value, and at another its gradient alone, is not a number."""

    num_particles: int = eqx.field(static=True)
    value_share: jax.Array
    gradient_share: jax.Array

    trains_all: ClassVar[bool] = True
    teaches_labels: ClassVar[bool] = False
    needs_all_units: ClassVar[bool] = False
    bias: ClassVar[str] = ""

    def check(self, structure):
        """Any model."""

    def is_settled(self, step):
        return True

    def __call__(self, key, guide, joint, minibatch):
        loss = am.ELBO()(key, guide, joint, minibatch)
        bad_value, bad_gradient = self.bad(key)
        odd = jax.lax.cond(bad_gradient, lambda v: jnp.sqrt(0.0 * v), lambda v: 0.0 * v, loss.value**2)
        return Loss(loss.value + odd + jnp.where(bad_value, jnp.nan, 0.0), loss.elbo_per_unit)

    def bad(self, key):
        keys = jax.random.split(jax.random.fold_in(key, 99))
        return jax.random.bernoulli(keys[0], self.value_share), jax.random.bernoulli(keys[1], self.gradient_share)

    def bad_steps(self, seed, count):
        """The steps, from 1, at which `fit` with this seed will meet either."""
        _, key = jax.random.split(jax.random.split(jax.random.key(seed))[1])
        found = []
        for step in range(1, count + 1):
            key, noise = jax.random.split(key)
            found += [step] if any(map(bool, self.bad(noise))) else []
        return found


def faulty(value_share, gradient_share=0.0):
    return Faulty(1, jnp.asarray(value_share), jnp.asarray(gradient_share))


# What is asked for


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number from 1, got 0"),
        ({"num_steps": 10.0}, r"num_steps must be a whole number from 1, got 10\.0"),
        ({"batch_size": "a"}, "batch_size must be a whole number from 1, got 'a'"),
        ({"batch_size": -1}, "batch_size must be a whole number from 1, got -1"),
        ({"num_steps": 5, "run": am.Run(num_steps=6)}, r"num_steps=5 but run\.num_steps=6; give one of them"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_runs_are_refused(options, match):
    with pytest.raises(am.FitError, match=match):
        fit(**options)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 0, None, jax.random.split(jax.random.key(0), 2)])
@pytest.mark.usefixtures("unchecked")
def test_a_key_must_be_one_typed_key(key):
    with pytest.raises(am.FitError, match=r"key must be one typed JAX key, jax\.random\.key\(0\), got"):
        am.fit(plan(), DATA, key=key)


def test_the_number_of_steps_is_exact_and_the_batch_no_larger_than_the_data(states):
    record = fit(num_steps=25, batch_size=500).record
    assert (record.num_steps, record.step, record.stopped) == (25, (10, 20, 25), "num_steps")
    assert [step for _, step in states] == [10, 20, 25]
    assert (record.batch_size, record.num_units, record.skipped_steps) == (24, 24, 0)
    assert len(record.elbo_per_unit) == 3
    assert record.elbo_per_unit[-1] > record.elbo_per_unit[0]


def test_the_same_seed_gives_the_same_bits_and_another_gives_others():
    first, again, other = (fit(num_steps=20, batch_size=7, seed=seed) for seed in (0, 0, 1))
    assert same(numbers(first), numbers(again))
    assert first.record.elbo_per_unit == again.record.elbo_per_unit
    assert not same(numbers(first), numbers(other))


def test_training_goes_on_from_a_posterior(monkeypatch):
    first = fit(num_steps=100)
    on = fit(first, num_steps=30)
    assert not same(numbers(first), numbers(on))
    assert on.record.elbo_per_unit[0] > first.record.elbo_per_unit[0] + 1  # it did not start again
    other = fit(first, {"x": 10 * X}, num_steps=10)  # other units are read on the scale of the first training
    old, new = (p.guide.encoder.features.statistics.value["x"]["center"] for p in (first, other))
    np.testing.assert_array_equal(old, new)
    interrupt_after(monkeypatch, 0)
    assert same(numbers(first), numbers(fit(first, num_steps=10)))


def test_any_optax_optimizer_serves():
    record = fit(num_steps=200, optimizer=optax.chain(optax.clip(1.0), optax.sgd(0.02))).record
    assert record.elbo_per_unit[-1] > record.elbo_per_unit[0] + 1


# What goes wrong


def interrupt_after(monkeypatch, blocks):
    done, real = [], engine.run_block

    def interrupted(fixed, state):
        if len(done) == blocks:
            raise KeyboardInterrupt
        done.append(1)
        return real(fixed, state)

    monkeypatch.setattr(engine, "run_block", interrupted)


def test_ctrl_c_returns_the_best_so_far(monkeypatch, states):
    interrupt_after(monkeypatch, 3)
    posterior = fit(num_steps=1000)
    assert (posterior.record.stopped, posterior.record.num_steps) == ("interrupted", 30)
    best = int(np.argmax(posterior.record.elbo_per_unit))
    assert same(numbers(posterior), states[best][0])


def test_ctrl_c_before_the_first_block_returns_the_start(monkeypatch):
    interrupt_after(monkeypatch, 0)
    posterior = fit(num_steps=1000)
    assert (posterior.record.stopped, posterior.record.num_steps) == ("interrupted", 0)
    assert same(numbers(posterior), numbers(untrained()))


def test_steps_that_are_not_finite_are_rolled_back_and_counted():
    for objective in (faulty(0.04), faulty(0.0, 0.04)):  # by their value, by their gradient alone
        expected = objective.bad_steps(seed=0, count=40)
        assert 1 <= len(expected) <= 3
        posterior = fit(num_steps=40, objective=objective)
        assert posterior.record.skipped_steps == len(expected)
        assert finite(posterior)
        assert np.all(np.isfinite(posterior.record.elbo_per_unit))
        assert not same(numbers(posterior), numbers(untrained()))
    posterior = fit(num_steps=3, objective=faulty(1.0))
    assert posterior.record.skipped_steps == 3
    assert same(numbers(posterior), numbers(untrained()))  # nothing at all has changed


@pytest.mark.parametrize(("value_share", "guarded"), [(0.0, [False] * 4), (0.04, None)])
def test_only_blocks_with_a_step_that_is_not_finite_run_again_guarded(monkeypatch, value_share, guarded):
    runs, real = [], compiled._run_block
    monkeypatch.setattr(
        compiled, "_run_block", lambda setting, *rest: runs.append(setting.guarded) or real(setting, *rest)
    )
    objective = faulty(value_share)
    fit(num_steps=40, objective=objective)
    bad = {(at - 1) // 10 for at in objective.bad_steps(seed=0, count=40)}
    assert runs == (guarded or [flag for block in range(4) for flag in ([False, True] if block in bad else [False])])


def too_many(bad, count):
    """(how often training goes back until step `count`, the first bad step of the block where it can't any more)."""
    backs, since = 0, 0
    for end in range(10, count + 1, 10):
        in_block = [step for step in bad if end - 10 < step <= end]
        since += len(in_block)
        if since > 3 and backs == MOST_SETBACKS:
            return backs, in_block[0]
        backs, since = (backs + 1, 0) if since > 3 else (backs, since)
    return backs, None


def test_after_more_than_three_such_steps_training_goes_back_with_smaller_steps(monkeypatch):
    factors, real = [], engine.set_step_size
    monkeypatch.setattr(engine, "set_step_size", lambda state, factor: factors.append(factor) or real(state, factor))
    objective = faulty(0.2)
    bad = objective.bad_steps(seed=0, count=60)
    backs, last = too_many(bad, 60)
    assert backs >= 2
    assert last is None
    posterior = fit(num_steps=60, objective=objective)
    assert posterior.record.skipped_steps == len(bad)
    assert finite(posterior)
    assert factors[-1] < 0.3 / 3**backs  # the cosine alone ends above 0.1


def test_when_it_can_go_back_no_more_an_error_says_when():
    objective = faulty(0.6)
    _, first = too_many(objective.bad_steps(seed=0, count=100), 100)
    assert first is not None
    with pytest.raises(am.FitError, match=rf"training steps gave a bound.* since step {first}[;,]"):
        fit(num_steps=100, objective=objective)


def test_units_at_fault_are_named():
    data = am.units(
        {"x": np.concatenate([X[:-1], np.full((1, 3), 1e30, np.float32)])}, labels=[f"u{i}" for i in range(24)]
    )
    with pytest.raises(am.FitError, match=r"units \['u23'\]; look at those units"):
        fit(data=data, num_steps=20, batch_size=24)
    with pytest.raises(am.FitError, match=r"units \['u23'\]; look at those units"):
        fit(data=data, num_steps=40, batch_size=6)


def test_updates_that_are_not_finite_are_rolled_back_too():
    # An optimizer of the user's own may divide by zero though loss and gradient are fine; the last step shows most.
    broken = optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda grads, count, params=None: (
            jax.tree.map(lambda g: jnp.where(count == 9, jnp.nan, -1e-3 * g), grads),
            count + 1,
        ),
    )
    posterior = fit(num_steps=10, optimizer=broken)
    assert finite(posterior)
    assert posterior.record.skipped_steps == 1
