"""Which distribution does each global have by its support? An exponential family: normal, gamma, beta or Dirichlet.

Sites are independent (Hoffman, Blei, Wang and Paisley 2013), each with the family whose density on its own space is
linear in what a conjugate model's log density is made of:

    real → normal,  positive → gamma,  interval → beta,  simplex → Dirichlet.

A gamma, beta or Dirichlet has shapes of its own, which whitening by the prior would bend: its numbers are the model's
unconstrained ones as they are (see `gamma` and `dirichlet`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._recipe import Recipe
from .._types import Context
from .base import AbstractNatural, Component
from .dirichlet import Dirichlet
from .gamma import Gamma
from .normal import diagonal, full

MOST_TOGETHER = 200  # numbers of a real site that have a full covariance
Kind = tuple[str, str, tuple[int, ...]]  # (name of a site, its support in words, shape of its unconstrained value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class exponential_family(Recipe, slots=("family", "shared_family")):
    """Recipe of `ExponentialFamily`, for `shared_family=`; `sites` is filled in from the model by `amortize`.

    A real site of up to 200 numbers has a normal with any covariance, a longer one independent normals. All else that
    is exact for a conjugate model is one gamma or beta for each number, one Dirichlet for each simplex.

    **Raises** `GuideError`, naming the site, where its support has none of these.
    """

    sites: tuple[Kind, ...] | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> ExponentialFamily:
        """The family on R^size."""
        if context_sizes:
            raise GuideError(
                "am.exponential_family() has free numbers, no context: it is for shared_family=; for q of units' "
                "locals give family=am.diagonal() or another"
            )
        if self.sites is None:
            raise GuideError(
                "am.exponential_family() needs the sites of a model: give it to am.amortize, shared_family="
            )
        if (total := sum(math.prod(shape) for *_, shape in self.sites)) != size:
            raise GuideError(f"am.exponential_family(sites=...) has {total} numbers, not {size}; leave sites out")
        keys = jax.random.split(key, len(self.sites))
        return ExponentialFamily(size, tuple(_block(*site, k) for site, k in zip(self.sites, keys, strict=True)))


def _block(name: str, support: str, shape: tuple[int, ...], key: Array) -> AbstractNatural:
    """The family of one site. NumPyro's names of supports begin with a word that says which it is."""
    size, word = math.prod(shape), support.partition("(")[0]
    if word == "Real":
        return (full() if size <= MOST_TOGETHER else diagonal()).build(size, (), key=key)
    if word in ("Positive", "GreaterThan", "GreaterThanEq", "Nonnegative"):
        return Gamma.near_one(size)
    if word in ("UnitInterval", "Interval", "OpenInterval"):
        return Dirichlet.start(size, 2)
    if word == "Simplex":
        return Dirichlet.start(math.prod(shape[:-1]), shape[-1] + 1, key=key)
    raise GuideError(
        f"am.exponential_family(): site '{name}' has support {support}, which is neither real, positive, an interval "
        "nor a simplex; use shared_family=am.full() or a flow for this model"
    )


class ExponentialFamily(AbstractNatural):
    """Independent blocks, one for each site."""

    size: int = eqx.field(static=True)
    blocks: tuple[AbstractNatural, ...]
    cheap_log_prob: ClassVar[bool] = True

    @property
    def noise_size(self) -> int:
        """Of all blocks."""
        return sum(block.noise_size for block in self.blocks)

    @property
    def draws_needed(self) -> int:
        """Of the block that needs most."""
        return max(block.draws_needed for block in self.blocks)

    @property
    def ignores_prior(self) -> bool:
        """Whether no block is shifted or stretched by the prior: to draw 60,000 shares of words takes half a minute."""
        return all(isinstance(block, Dirichlet) for block in self.blocks)

    def own_frame(self, prior: dict[str, Array]) -> dict[str, Array]:
        """The prior's center and scale as far as a block can be shifted and stretched: a gamma only shifted."""
        cut = zip(self.blocks, *(self._by_size(prior[name]) for name in ("center", "scale")), strict=True)
        framed = [block.own_frame(center, scale) for block, center, scale in cut]
        centers, scales = zip(*framed, strict=True)
        return {"center": jnp.concatenate(centers), "scale": jnp.concatenate(scales)}

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""
        own = zip(self.blocks, self._by_noise(noise), strict=True)
        values, log_probs = zip(
            *(block.sample_and_log_prob(part, component, context) for block, part in own), strict=True
        )
        return jnp.concatenate(values), sum(log_probs, jnp.zeros(()))

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        own = zip(self.blocks, self._by_size(value), strict=True)
        return sum((block.log_prob(part, context) for block, part in own), jnp.zeros(()))

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Those of all blocks."""
        means, sds = zip(*(block.mean_and_sd(context) for block in self.blocks), strict=True)
        return jnp.concatenate(means), jnp.concatenate(sds)

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """As every block does."""
        own = zip(self.blocks, self._by_size(value), strict=True)
        return jnp.concatenate([block.standardize(part, context) for block, part in own])

    def natural_step(
        self, noise: Float[Array, "draws noise"], slopes: Float[Array, "draws d"], rate: Float[Array, ""]
    ) -> ExponentialFamily:
        """A step of every block."""
        own = zip(self.blocks, self._by_noise(noise), self._by_size(slopes), strict=True)
        return ExponentialFamily(self.size, tuple(block.natural_step(e, r, rate) for block, e, r in own))

    def _by_size(self, numbers: Array) -> list[Array]:
        return _cut(numbers, [block.size for block in self.blocks])

    def _by_noise(self, noise: Array) -> list[Array]:
        return _cut(noise, [block.noise_size for block in self.blocks])


def _cut(numbers: Array, sizes: list[int]) -> list[Array]:
    """Parts of these sizes along the last axis."""
    ends = list(itertools.accumulate(sizes))
    return [numbers[..., end - size : end] for end, size in zip(ends, sizes, strict=True)]
