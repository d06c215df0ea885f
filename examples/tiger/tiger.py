"""An agent that acts on an amortized belief: Tiger (Kaelbling, Littman and Cassandra 1998), the smallest hard POMDP.

    python examples/tiger/tiger.py            # some four minutes on two cores
    python examples/tiger/tiger.py --small    # one minute, for CI

Behind one of two doors is a tiger. Listening costs 1 and is right with probability 0.85; opening the other door brings
10, the tiger's door costs 100, and then the tiger is put behind a door at random. The model is ordinary NumPyro;
amortax learns the belief q(tiger | all that was done and heard) from its simulations, and a small Q-network learns,
inside compiled rollouts, what to do at a belief. Printed: how far the belief is from Bayes' rule, and the discounted
return of the policy learned on it, beside that of the same learning on the exact belief and beside the optimum.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import amortax as am

LISTEN, OPEN_LEFT, OPEN_RIGHT = range(3)
ACTIONS, RIGHT, DISCOUNT = 3, 0.85, 0.95
REWARD = np.array([[-1.0, -1.0], [-100.0, 10.0], [10.0, -100.0]])  # of an action where the tiger is left, right
STEPS = 20  # of an episode in training; those that are played are longer


def tiger(action: jax.Array, heard: jax.Array) -> None:
    """Where the tiger is after each action (1: right), and what is heard then."""
    stays = action == LISTEN
    hears = jnp.where(stays[..., None], jnp.array([1 - RIGHT, RIGHT]), 0.5)  # "right", given left and right
    with numpyro.plate("episode", action.shape[0]):
        found, before = [], jnp.full(action.shape[:1], 0.5)
        for t in range(action.shape[1]):
            place = numpyro.sample(f"tiger_{t}", dist.Categorical(probs=jnp.stack([1 - before, before], axis=-1)))
            found.append(place)
            if t + 1 < action.shape[1]:
                before = jnp.where(stays[:, t + 1], place, 0.5)
        places = jnp.stack(found, axis=-1)
        shown = jnp.where(places == 1, hears[..., 1], hears[..., 0])
        numpyro.sample("heard", dist.Bernoulli(shown).to_event(1), obs=heard)


def random_episodes(count: int, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Actions of policies that listen by chance, more or less often; what is heard is drawn anew in training."""
    random = np.random.default_rng(seed)
    listens = random.random((count, steps)) < random.uniform(0.3, 1.0, (count, 1))
    opened = random.integers(OPEN_LEFT, ACTIONS, (count, steps))
    action = np.where(listens, LISTEN, opened).astype(np.int32)
    return {"action": action, "heard": random.integers(0, 2, action.shape).astype(np.int32)}


class Tracker(NamedTuple):
    """A belief that is carried on: `update(state, action, heard)`, and p(tiger right) at a state."""

    init: Callable[[], Any]
    update: Callable[..., Any]
    right: Callable[[Any], jax.Array]


def exact_tracker() -> Tracker:
    """Bayes' rule."""

    def update(right: jax.Array, action: jax.Array, heard: jax.Array) -> jax.Array:
        said = jnp.where(heard == 1, RIGHT, 1 - RIGHT)
        given = right * said / (right * said + (1 - right) * (1 - said))
        return jnp.where(action == LISTEN, given, 0.5)

    return Tracker(lambda: jnp.full((), 0.5), update, lambda right: right)


def learned_tracker(posterior: am.Posterior) -> Tracker:
    """The amortized filter. An episode begins as after an opened door: the tiger may be anywhere."""
    beliefs = posterior.filter()

    def update(state: Any, action: jax.Array, heard: jax.Array) -> Any:
        return beliefs.update(state, {"action": action, "heard": heard})

    return Tracker(
        lambda: update(beliefs.init(), jnp.int32(OPEN_LEFT), jnp.int32(0)),
        update,
        lambda state: beliefs.belief(state).probabilities()["tiger"][1],
    )


def act(key: jax.Array, place: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(where the tiger is afterwards, what is heard, the reward)."""
    moved, noise = jax.random.uniform(key, (2,))
    reward = jnp.asarray(REWARD)[action, place]
    after = jnp.where(action == LISTEN, place, (moved < 0.5).astype(jnp.int32))
    right = jnp.where(action == LISTEN, jnp.where(after == 1, RIGHT, 1 - RIGHT), 0.5)
    return after, (noise < right).astype(jnp.int32), reward


class Values(eqx.Module):
    """Q(belief, action): a network of the log odds."""

    network: eqx.nn.MLP

    def __init__(self, *, key: jax.Array) -> None:
        self.network = eqx.nn.MLP(1, ACTIONS, 32, depth=2, activation=jax.nn.tanh, key=key)

    def __call__(self, right: jax.Array) -> jax.Array:
        """The values of all actions, in tens."""
        right = jnp.clip(right, 1e-3, 1 - 1e-3)
        return self.network((jnp.log(right) - jnp.log1p(-right))[None] / 3.0)


def learn_policy(tracker: Tracker, *, key: jax.Array, steps: int, players: int = 512, epsilon: float = 0.3) -> Values:
    """Q-learning with a slow target, of many players at once, each step one move of all; returns the slow one."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps, alpha=0.01))
    net_key, place_key, key = jax.random.split(key, 3)
    values = Values(key=net_key)
    weights, rest = eqx.partition(values, eqx.is_array)
    places = jax.random.bernoulli(place_key, shape=(players,)).astype(jnp.int32)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (players, *x.shape)), tracker.init())

    def loss(weights: Any, slow: Any, seen: tuple) -> jax.Array:
        before, action, reward, after = seen
        online, target = eqx.combine(weights, rest), eqx.combine(slow, rest)
        wanted = reward / 10.0 + DISCOUNT * jnp.max(jax.vmap(target)(after), axis=1)
        chosen = jnp.take_along_axis(jax.vmap(online)(before), action[:, None], axis=1)[:, 0]
        return jnp.mean((chosen - wanted) ** 2)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        weights, slow, moments, places, states = carry
        explore_key, any_key, act_key = jax.random.split(key, 3)
        before = jax.vmap(tracker.right)(states)
        greedy = jnp.argmax(jax.vmap(eqx.combine(weights, rest))(before), axis=1)
        explores = jax.random.bernoulli(explore_key, epsilon, (players,))
        action = jnp.where(explores, jax.random.randint(any_key, (players,), 0, ACTIONS), greedy)
        places, heard, reward = jax.vmap(act)(jax.random.split(act_key, players), places, action)
        states = jax.vmap(tracker.update)(states, action, heard)
        after = jax.vmap(tracker.right)(states)
        gradient = jax.grad(loss)(weights, slow, (before, action, reward, after))
        updates, moments = optimizer.update(gradient, moments)
        weights = optax.apply_updates(weights, updates)
        slow = jax.tree.map(lambda s, w: s + 0.01 * (w - s), slow, weights)
        return (weights, slow, moments, places, states), None

    start = weights, weights, optimizer.init(weights), places, states
    learn = jax.jit(lambda start, keys: jax.lax.scan(step, start, keys)[0])
    return eqx.combine(learn(start, jax.random.split(key, steps))[1], rest)


def play(tracker: Tracker, values: Values, *, key: jax.Array, episodes: int, steps: int) -> tuple[np.ndarray, ...]:
    """(discounted returns, total variation to the exact belief after every step) of greedy episodes."""
    exact = exact_tracker()

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
        place, state, known = carry
        action = jnp.argmax(values(tracker.right(state)))
        place, heard, reward = act(key, place, action)
        state, known = tracker.update(state, action, heard), exact.update(known, action, heard)
        return (place, state, known), (reward, jnp.abs(tracker.right(state) - exact.right(known)))

    def episode(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        place_key, key = jax.random.split(key)
        start = jax.random.bernoulli(place_key).astype(jnp.int32), tracker.init(), exact.init()
        rewards, apart = jax.lax.scan(step, start, jax.random.split(key, steps))[1]
        return jnp.sum(rewards * DISCOUNT ** jnp.arange(steps)), apart

    found = jax.jit(jax.vmap(episode))(jax.random.split(key, episodes))
    return tuple(np.asarray(x, np.float64) for x in found)


def random_variation(tracker: Tracker, *, key: jax.Array, steps: int) -> float:
    """Mean total variation to the exact belief over steps of episodes played at random."""
    data, exact = random_episodes(2000, steps, seed=1), exact_tracker()

    def episode(key: jax.Array, actions: jax.Array) -> jax.Array:
        def step(carry: tuple, now: tuple) -> tuple[tuple, jax.Array]:
            (place, state, known), (key, action) = carry, now
            place, heard, _ = act(key, place, action)
            state, known = tracker.update(state, action, heard), exact.update(known, action, heard)
            return (place, state, known), jnp.abs(tracker.right(state) - known)

        start = jnp.int32(0), tracker.init(), exact.init()
        return jax.lax.scan(step, start, (jax.random.split(key, steps), actions))[1]

    return float(jnp.mean(jax.jit(jax.vmap(episode))(jax.random.split(key, 2000), data["action"])))


def optimum(points: int = 4001, sweeps: int = 400) -> float:
    """The optimal discounted return from not knowing, by value iteration on a grid of beliefs."""
    right = np.linspace(0.0, 1.0, points)
    hears = right * RIGHT + (1 - right) * (1 - RIGHT)
    after_right, after_left = right * RIGHT / hears, right * (1 - RIGHT) / (1 - hears)
    value = np.zeros(points)
    for _ in range(sweeps):
        after = hears * np.interp(after_right, right, value) + (1 - hears) * np.interp(after_left, right, value)
        again = np.interp(0.5, right, value)
        listen = -1.0 + DISCOUNT * after
        opened = np.outer(REWARD[1:, 0], 1 - right) + np.outer(REWARD[1:, 1], right) + DISCOUNT * again
        value = np.maximum(listen, opened.max(axis=0))
    return float(np.interp(0.5, right, value))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of training the belief; default 3,000, small 800")
    parser.add_argument("--moves", type=int, help="of training a policy; default 20,000, small 5,000")
    parser.add_argument("--episodes", type=int, help="played to judge it; default 20,000, small 4,000")
    parser.add_argument("--length", type=int, default=150, help="moves of an episode that is played")
    given = parser.parse_args()
    given.steps = given.steps or (800 if given.small else 3_000)
    given.moves = given.moves or (5_000 if given.small else 20_000)
    given.episodes = given.episodes or (4_000 if given.small else 20_000)
    return given


def main() -> None:
    """Trains the belief, then a policy on it and one on the exact belief."""
    given = arguments()
    keys = jax.random.split(jax.random.key(given.seed), 4)
    data = random_episodes(1024, STEPS, seed=0)
    recipes = {"family": am.filtering(width=32), "encoder": am.causal(width=32)}
    plan = am.amortize(tiger, data, plate="episode", **recipes)
    posterior = am.fit(plan, data, key=keys[0], num_steps=given.steps, batch_size=128)
    learned = learned_tracker(posterior)
    record = posterior.record
    print(f"belief: {record.num_steps:,} steps of 128 episodes of {STEPS} moves, {record.seconds:.0f} s")
    apart = random_variation(learned, key=keys[1], steps=given.length)
    print(f"random policies, {given.length} moves: total variation to Bayes' rule {apart:.4f}", flush=True)
    print(f"optimal return from not knowing: {optimum():.2f}")
    for name, tracker in (("exact belief", exact_tracker()), ("learned belief", learned)):
        values = learn_policy(tracker, key=keys[2], steps=given.moves)
        returns, apart = play(tracker, values, key=keys[3], episodes=given.episodes, steps=given.length)
        error = returns.std() / len(returns) ** 0.5
        variation = f", total variation on its way {apart.mean():.4f}" if tracker is learned else ""
        print(f"{name:15} return {returns.mean():.2f} ± {error:.2f}{variation}", flush=True)


if __name__ == "__main__":
    main()
