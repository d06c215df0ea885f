"""Forward KL: the model simulates its own units, and q of the locals learns to recognise them.

    loss = E_{v} E_{u, d ~ p(u, d | v)} [ -log q(u | e(d), v) ],

which is the mean of KL(p(u | d, v) ‖ q(u | e(d), v)) over data that the model itself makes, plus a constant
(Papamakarios and Murray 2016; the sleep phase of Hinton, Dayan, Frey and Neal 1995). It covers every mode, where the
ELBO may drop some.

Simulated units stand in the places of a minibatch's real ones: their covariates, lengths and masks, with locals and
responses drawn anew, inside the compiled step. Half of them take v from the prior, so that q is right wherever v may
be, half from q(v) as it is, where it will be asked. Neither q(v) nor the model's own parameters learn from simulation.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import FitError, GuideError, ModelError
from .._types import Batch, Context, whole_number
from ..frames import prior_frame
from ..guide import Guide
from ..joint.assignments import standing
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch, batch_size, check_locals, weighed
from .elbo import ELBO
from .estimators import stopped

FARTHEST = 1e8  # times the largest real value, or the prior's scale: its square and a gradient of it are still finite


class ForwardKL(AbstractObjective):
    """Trains q of the locals on `num_particles` simulated units in the place of each real one.

    Given (latents, data) pairs it trains on these, and simulates nothing.

    It trains nothing else: with globals or learned parameters use it in `am.Sum` with `am.ELBO`, or to go on from a
    fitted posterior. It needs `log_prob` of the local family at each step, which `am.iaf` has only number by number.

    The bound that it reports is the ELBO of the real units (NaN for `am.filtering()`, which has none, and where the
    model has no density). Simulations
    whose numbers float32 can't square, or that lie `FARTHEST` times farther out than any real one, are left out.

    **Raises** `FitError` if `num_particles` is no whole number from 1; from `fit`, `ModelError` if the model has no
    locals or can't be simulated, with the reason.
    """

    num_particles: int = eqx.field(static=True, default=1)
    needs_all_units: ClassVar[bool] = False
    trains_all: ClassVar[bool] = False
    teaches_labels: ClassVar[bool] = True

    def __check_init__(self) -> None:
        whole_number("am.ForwardKL: num_particles", self.num_particles, FitError)

    def check(self, structure: Structure) -> None:
        """Refuses a model without locals, and one that can't be simulated."""
        check_simulation("am.ForwardKL", structure)

    @property
    def bias(self) -> str:
        """None."""
        return ""

    def is_settled(self, step: int) -> bool:
        """Always: it has no schedule."""
        return True

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the mean log density of simulated locals."""
        simulation_key, elbo_key = jax.random.split(key)
        loss = simulated_loss(simulation_key, guide, joint, minibatch, count=self.num_particles)
        if guide.filters or joint.structure.no_density:  # beliefs step by step are no posterior, and have no bound
            return Loss(loss, jnp.full((), jnp.nan))
        # Reported, not differentiated: a path derivative of it would be a second density for nothing.
        still_guide, still_joint = stopped((guide, joint))
        return Loss(loss, ELBO(path_derivative=False)(elbo_key, still_guide, still_joint, minibatch).elbo_per_unit)


def check_simulation(name: str, structure: Structure) -> None:
    """Raises `ModelError` unless the model has locals and can be simulated."""
    check_locals(name, structure)
    if structure.cannot_simulate:
        instead = (
            "give (latents, data) pairs from its simulator, am.fit(guide, (latents, data), key=key)"
            if structure.no_density
            else "use an objective without them: am.ELBO(), am.IWELBO(), am.Renyi()"
        )
        raise ModelError(
            f"{name} needs simulations, but model '{structure.model}' can't be simulated: {structure.cannot_simulate}; "
            + instead
        )


def simulated_loss(key: Array, guide: Guide, joint: Joint, minibatch: Minibatch, *, count: int) -> Float[Array, ""]:
    """Mean of -log q(u | d, v) over `count` simulations in every unit's place; its gradient is q of the locals'."""
    if any(batch.rows is not None for batch in minibatch.groups):
        raise GuideError(
            "simulated units are new ones, and am.free() has no q for those; use an objective of real units "
            "(am.ELBO(), am.IWELBO(), am.Renyi()) or an encoder"
        )
    joint = stopped(joint)
    if all(batch.latents is not None for batch in minibatch.groups):
        return _pairs_loss(guide, joint, minibatch)
    if guide.shared is not None:
        guide = eqx.tree_at(lambda g: g.shared, guide, stopped(guide.shared))

    def one(local: Array, context: Context, shared: Array, unit: Batch) -> Array:
        return guide.local_log_prob(local, context, shared, unit, joint)

    def particle(key: Array) -> tuple[Array, Array]:
        losses, used = [], []
        for number, batch in enumerate(minibatch.groups):
            local, shared, drawn, useful = simulate(jax.random.fold_in(key, number), guide, joint, batch)
            log_q = jax.vmap(one)(local, guide.encode(drawn), shared, drawn)
            losses.append(-jnp.sum(weighed(jnp.where(useful, log_q, 0.0), batch)))
            used.append(jnp.sum(useful))
        return sum(losses, jnp.zeros(())), sum(used, jnp.zeros((), jnp.int32))

    loss, used = jax.vmap(particle)(jax.random.split(key, count))
    return jnp.sum(loss) / jnp.sum(used)  # none of use: NaN, and training says so


def _pairs_loss(guide: Guide, joint: Joint, minibatch: Minibatch) -> Float[Array, ""]:
    """Mean of -log q(u | d) over pairs that were simulated before."""

    def one(context: Context, unit: Batch) -> Array:
        assert unit.latents is not None
        return guide.local_log_prob(unit.latents, context, jnp.zeros(0), unit, joint)

    each = [weighed(jax.vmap(one)(guide.encode(batch), batch), batch) for batch in minibatch.groups]
    return -jnp.mean(jnp.concatenate(each))


def simulate(
    key: Array, guide: Guide, joint: Joint, batch: Batch
) -> tuple[Float[Array, "units d"], Float[Array, "units g"], Batch, Array]:
    """(locals, globals, data, whether they are of use) of one simulated unit in the place of each of `batch`.

    Where they are not, latents are zero and data the real ones, so that no gradient is touched by what is left out.
    """
    size = batch_size(batch)
    turn_key, unit_key = jax.random.split(key)
    from_prior = (jnp.arange(size) + jax.random.bernoulli(turn_key)) % 2 == 0
    limits = {name: FARTHEST * jnp.maximum(1.0, jnp.max(jnp.abs(x))) for name, x in batch.arrays.items()}

    def one(key: Array, from_prior: Array, unit: Batch) -> tuple[Array, Array, Batch, Array]:
        prior_key, guide_key, key = jax.random.split(key, 3)
        shared = jnp.zeros(0)
        if guide.shared is not None:
            shared = jnp.where(from_prior, joint.simulate_shared(prior_key, unit), guide.sample_shared(guide_key)[0])
        local, responses = joint.simulate(key, shared, unit)
        within = [jnp.all(jnp.abs(x) <= limits[name]) for name, x in responses.items()]
        places = []
        if guide.shared is not None:
            places.append(prior_frame(guide.shared.whitening).take(shared))
        if guide.local is not None:
            numbers, at = standing(joint.structure, local, unit)
            places.append(guide.whitened_numbers(numbers, at, joint))
        within += [jnp.all(jnp.abs(place) <= FARTHEST) for place in places]
        useful = jnp.all(jnp.stack(within))
        kept = {name: jnp.where(useful, x, unit.arrays[name]) for name, x in responses.items()}
        drawn = Batch({**unit.arrays, **kept}, unit.masks, unit.lengths)
        return jnp.where(useful, local, 0.0), jnp.where(useful, shared, 0.0), drawn, useful

    return stopped(jax.vmap(one)(jax.random.split(unit_key, size), from_prior, batch))
