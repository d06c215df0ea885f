"""Item response: how able is each person, how difficult each item? One parameter an item (Rasch), or two.

Person j answers item k correctly with log odds

    1PL  ability_j - difficulty_k              2PL  discrimination_k (ability_j - difficulty_k)
    ability_j ~ Normal(0, ability_scale)       difficulty_k ~ Normal(difficulty_mean, difficulty_scale)
                                               discrimination_k ~ LogNormal(0, discrimination_scale)

The person is the unit, so abilities of new persons come in one forward pass. Items are pooled: what they have in
common is learned unless `Priors` gives a number. Answers are a matrix (person, item) with NaN where an item was not
given, or in long form: `correct` and the `item` of each, any number a person, from a table with one row per answer.

    data, family = {"correct": correct}, am.blocks(curved=True)
    guide = am.amortize(item_response.two_parameters, data, plate="person", shared_family=family)
    objective = am.IWELBO(1, num_shared_draws=16, weigh_shared=True)
    posterior = am.fit(guide, data, key=jax.random.key(0), objective=objective)

These are for two parameters and up to some thousand persons: difficulties of items that hardly discriminate have long
tails, which neither a normal nor the ELBO reaches. For one parameter, or many persons, the defaults are exact enough
(tests/statistical/test_item_response.py: both, against reference posteriors).

Rasch (1960); Birnbaum in Lord and Novick, Statistical theories of mental test scores (1968).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Num

from amortax._errors import DataError, ModelError
from amortax.models.scales import check_prior, known_or_drawn

__all__ = ["Priors", "one_parameter", "two_parameters"]


@dataclasses.dataclass(frozen=True)
class Priors:
    """Priors of what items and persons have in common: a NumPyro distribution, or a number that is known.

    - `ability_scale`: sd of abilities.
    - `difficulty_mean`, `difficulty_scale`: of the difficulties.
    - `discrimination_scale`: sd of log discriminations, `two_parameters` alone.
    """

    ability_scale: dist.Distribution | float = dataclasses.field(default_factory=lambda: dist.HalfCauchy(2.0))
    difficulty_mean: dist.Distribution | float = dataclasses.field(default_factory=lambda: dist.Normal(0.0, 5.0))
    difficulty_scale: dist.Distribution | float = dataclasses.field(default_factory=lambda: dist.HalfCauchy(2.0))
    discrimination_scale: dist.Distribution | float = dataclasses.field(default_factory=lambda: dist.HalfCauchy(2.0))

    def __post_init__(self) -> None:
        """Raises `ModelError` for what is neither a number nor a prior, and for scales that are not positive."""
        for field in dataclasses.fields(self):
            scale = field.name != "difficulty_mean"
            check_prior(f"item_response.Priors: {field.name}", getattr(self, field.name), positive=scale)


def one_parameter(
    correct: Num[ArrayLike, "person answer"] | None = None,
    item: Int[Array, "person answer"] | None = None,
    *,
    num_items: int | None = None,
    priors: Priors | None = None,
) -> None:
    """The Rasch model; amortize it over the plate "person".

    Args:
        correct: 1 where the answer was right; missing ones as NaN.
        item: which item each answer is of, 0, 1, ...; None: column k of `correct` is item k.
        num_items: how many items there are, where `item` is given.
        priors: None for `Priors()`.

    """
    _answers(correct, item, num_items, Priors() if priors is None else priors, discriminating=False)


def two_parameters(
    correct: Num[ArrayLike, "person answer"] | None = None,
    item: Int[Array, "person answer"] | None = None,
    *,
    num_items: int | None = None,
    priors: Priors | None = None,
) -> None:
    """The two-parameter logistic model; amortize it over the plate "person".

    Args:
        correct: 1 where the answer was right; missing ones as NaN.
        item: which item each answer is of, 0, 1, ...; None: column k of `correct` is item k.
        num_items: how many items there are, where `item` is given.
        priors: None for `Priors()`.

    """
    _answers(correct, item, num_items, Priors() if priors is None else priors, discriminating=True)


def _answers(correct: Any, item: Any, num_items: int | None, priors: Priors, *, discriminating: bool) -> None:
    """Both models: without discrimination every item's is 1."""
    given = correct if item is None else item
    if given is None or (item is not None and num_items is None):
        raise ModelError(
            "an item response model got neither a matrix correct (person, item) nor item with num_items; bind "
            "num_items with functools.partial where answers are in long form"
        )
    if item is not None and not jnp.issubdtype(jnp.result_type(item), jnp.integer):
        raise DataError(
            f"data['item'] says which item each answer is of, 0, 1, ..., and is of type {item.dtype}; give integers"
        )
    count: Any = given.shape[1] if item is None else num_items
    ability_scale = known_or_drawn("ability_scale", priors.ability_scale)
    difficulty_mean = known_or_drawn("difficulty_mean", priors.difficulty_mean)
    difficulty_scale = known_or_drawn("difficulty_scale", priors.difficulty_scale)
    discrimination: Any = 1.0
    items = numpyro.plate("item", count, dim=-1)
    if discriminating:
        discrimination_scale = known_or_drawn("discrimination_scale", priors.discrimination_scale)
        with items:
            discrimination = numpyro.sample("discrimination", dist.LogNormal(0.0, discrimination_scale))
    with items:
        difficulty: Any = numpyro.sample("difficulty", dist.Normal(difficulty_mean, difficulty_scale))
    if item is not None:
        difficulty, discrimination = difficulty[item], discrimination[item] if discriminating else 1.0
    answers = items if item is None else numpyro.plate("answer", given.shape[1], dim=-1)
    with numpyro.plate("person", given.shape[0], dim=-2):
        u: Any = numpyro.sample("u", dist.Normal(0.0, 1.0))  # of scale one, however vague the prior of abilities is
        ability = numpyro.deterministic("ability", ability_scale * u)
        with answers:
            logits = discrimination * (ability - difficulty)
            numpyro.sample("correct", dist.Bernoulli(logits=logits), obs=correct)
