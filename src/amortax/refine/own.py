"""What is q of a unit that has variational parameters of its own? Two forms, each started at what is known already.

`OwnContext`: the guide's q at a context of the unit's own, instead of the encoder's (semi-amortized inference: Kim and
others 2018). It keeps the family, its shape and how it follows the globals, whatever these are.

`OwnNormal`: for up to `LARGEST_DENSE` numbers, a normal in the frame of one Newton step,

    u = center(v) + factor(v) (b + L w),   w ~ N(0, I),
    center(v) = a + A⁻¹ ∇ log p(d, a | v),   factor(v) factor(v)ᵀ = A⁻¹,   A = -∇² log p(d, a | v),

from a point a of the unit's own, which is near its mode: exact for Gaussian units before any step, for every v.

`Defended` wraps either, where its weights judge or correct it.

References: Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions; Kim, Wiseman,
Miller, Sontag and Rush (2018), Semi-amortized variational autoencoders.
"""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch, Context, Fixed
from ..families.base import standard_log_prob
from ..frames import Frame
from ..heads import dense_newton_frame
from .target import Target

LARGEST_DENSE = 16  # numbers of a unit whose curvature is taken as one matrix
WIDER = 4.0  # the spread of a defended q's companion in its own


class Given(eqx.Module):
    """What q of a unit depends on besides its parameters: the globals and, of a normal, its Newton frame."""

    shared: Float[Array, " g"]
    frame: Frame | None


class AbstractOwn(eqx.Module):
    """q of one unit; its floating arrays are the unit's variational parameters."""

    @abstractmethod
    def given(self, shared: Float[Array, " g"], unit: Batch, target: Target) -> Given:
        """The part that is the same for all draws given the globals."""

    @abstractmethod
    def draw(self, key: Array, given: Given, unit: Batch, target: Target) -> tuple[Float[Array, " d"], Array]:
        """A draw, and its log density in nats."""

    @abstractmethod
    def log_prob(self, local: Float[Array, " d"], given: Given, unit: Batch, target: Target) -> Float[Array, ""]:
        """Log density in nats."""

    @abstractmethod
    def chart(self, given: Given) -> Frame:
        """The frame in which q is about standard normal."""


class OwnContext(AbstractOwn):
    """The guide's q at the unit's own context; its `place` is where draws of it are."""

    context: Context
    place: Fixed  # {"center": (d,), "scale": (d,)}

    def given(self, shared: Float[Array, " g"], unit: Batch, target: Target) -> Given:
        """The globals."""
        return Given(shared, None)

    def draw(self, key: Array, given: Given, unit: Batch, target: Target) -> tuple[Float[Array, " d"], Array]:
        """A draw of the guide."""
        return target.draw(key, self.context, given.shared, unit)

    def log_prob(self, local: Float[Array, " d"], given: Given, unit: Batch, target: Target) -> Float[Array, ""]:
        """That of the guide."""
        return target.guide_log_prob(local, self.context, given.shared, unit)

    def chart(self, given: Given) -> Frame:
        """Center and scale of draws."""
        return Frame(self.place.value["center"], self.place.value["scale"])


class OwnNormal(AbstractOwn):
    """A normal in a Newton frame from the unit's own point; all in the numbers of the prior's frame."""

    point: Fixed  # (d,)
    shift: Float[Array, " d"]
    log_diagonal: Float[Array, " d"]
    lower: Float[Array, "d d"]  # its strictly lower triangle is read

    def factor(self) -> Float[Array, "d d"]:
        """`L`."""
        strict = jnp.tril(self.lower, -1)
        return jnp.exp(self.log_diagonal)[:, None] * (jnp.eye(self.shift.shape[0]) + strict)

    def given(self, shared: Float[Array, " g"], unit: Batch, target: Target) -> Given:
        """The Newton frame."""
        prior = target.prior_frame(unit)

        def density(free: Array) -> Array:
            return target.log_prob(prior.place(free), shared, unit)

        frame = dense_newton_frame(density, self.point.value, prior)[0]
        return Given(shared, Frame(frame.center, frame.factor if frame.factor.ndim == 2 else frame.factor[:, None]))

    def chart(self, given: Given) -> Frame:
        """The Newton frame with `b` and `L`."""
        assert given.frame is not None
        frame = given.frame
        return Frame(frame.center + frame.factor @ self.shift, frame.factor @ self.factor())

    def draw(self, key: Array, given: Given, unit: Batch, target: Target) -> tuple[Float[Array, " d"], Array]:
        """An affine map of standard normals."""
        chart, noise = self.chart(given), jax.random.normal(key, self.shift.shape)
        return chart.place(noise), standard_log_prob(noise) - chart.log_det

    def log_prob(self, local: Float[Array, " d"], given: Given, unit: Batch, target: Target) -> Float[Array, ""]:
        """That of the normal."""
        chart = self.chart(given)
        return standard_log_prob(chart.take(local)) - chart.log_det


class Defended(AbstractOwn):
    """A q with two wide companions, so that its weights see what it never draws: other modes, and long tails.

        0.8 q + 0.1 N(center, (4 factor)²) + 0.1 prior,

    the one in q's chart, the other a normal at the prior's own center and spread (defensive importance sampling:
    Hesterberg 1995). In many dimensions they find nothing and cost a fifth of the draws.
    """

    inner: AbstractOwn
    shares: tuple[float, float, float] = eqx.field(static=True, default=(0.8, 0.1, 0.1))

    def given(self, shared: Float[Array, " g"], unit: Batch, target: Target) -> Given:
        """As the inner q."""
        return self.inner.given(shared, unit, target)

    def chart(self, given: Given) -> Frame:
        """As the inner q."""
        return self.inner.chart(given)

    def draw(self, key: Array, given: Given, unit: Batch, target: Target) -> tuple[Float[Array, " d"], Array]:
        """A draw of one of the three."""
        own_key, noise_key, which_key = jax.random.split(key, 3)
        own, _ = self.inner.draw(own_key, given, unit, target)
        noise = jax.random.normal(noise_key, own.shape)
        wide = [frame.place(noise) for frame in self._wide(given, unit, target)]
        which = jax.random.categorical(which_key, jnp.log(jnp.array(self.shares)))
        local = jnp.stack([own, *wide])[which]
        return local, self.log_prob(local, given, unit, target)

    def log_prob(self, local: Float[Array, " d"], given: Given, unit: Batch, target: Target) -> Float[Array, ""]:
        """That of the mixture."""
        wide = [standard_log_prob(f.take(local)) - f.log_det for f in self._wide(given, unit, target)]
        each = jnp.stack([self.inner.log_prob(local, given, unit, target), *wide])
        return jax.nn.logsumexp(each + jnp.log(jnp.array(self.shares)))

    def _wide(self, given: Given, unit: Batch, target: Target) -> tuple[Frame, Frame]:
        chart = self.inner.chart(given)
        return Frame(chart.center, WIDER * chart.factor), target.prior_frame(unit)


def defended(own: AbstractOwn, target: Target) -> AbstractOwn:
    """`own` with its companions, where a unit's locals are numbers alone."""
    return Defended(own) if target.continuous else own


def encoded(target: Target, batch: Batch) -> OwnContext:
    """q of the encoder, for every unit of a batch; where its draws are is not known yet."""
    sizes = jax.vmap(lambda unit: jnp.zeros(target.size(unit)))(batch)
    return OwnContext(target.guide.encode(batch), Fixed({"center": sizes, "scale": jnp.ones_like(sizes)}))


def at_point(point: Float[Array, " d"]) -> OwnNormal:
    """The Laplace approximation at a point, in the numbers of the prior's frame."""
    zero = jnp.zeros_like(point)
    return OwnNormal(Fixed(point), zero, zero, jnp.zeros((point.shape[0], point.shape[0])))
