"""The families that the contract tests go through: small, and with every number away from where training starts."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import amortax as am
from amortax.families.base import draw_noise

CONTEXT = (3, 1)
SMALL = {"width": 8, "depth": 1}
LAYOUTS = {  # of `blocks`: one number on top and, where there is room, pairs in a plate, of which one site is turned
    1: (((), (1,), ()),),
    2: (((), (), ()), (("item",), (1,), (0,))),
    5: ((("item",), (2,), (0,)), ((), (), ()), (("item",), (1, 2), (1,))),
}
SERIES = {1: (((), (1,), ()),), 2: (((), (1, 2), ()),), 4: (((), (2,), ()), (("time",), (1, 2), (1,)))}
NORMALS = {
    "diagonal": lambda size: am.diagonal(**SMALL),
    "full": lambda size: am.full(**SMALL),
    "low_rank": lambda size: am.low_rank(min(2, size), **SMALL),
    "blocks": lambda size: am.blocks(2, layout=LAYOUTS[size], **SMALL),
    "markov": lambda size: am.markov(layout=SERIES.get(size, (((), (size,), ()),)), **SMALL),
}
FLOWS = {
    "coupling": lambda size: am.coupling(3, **SMALL),
    "spline_coupling": lambda size: am.coupling(3, am.spline(6), **SMALL),
    "maf": lambda size: am.maf(3, **SMALL),
    "spline_maf": lambda size: am.maf(2, am.spline(4), **SMALL),
    "iaf": lambda size: am.iaf(3, **SMALL),
    "planar": lambda size: am.planar(4, **SMALL),
    "heavy_coupling": lambda size: am.coupling(3, base=am.student_t(5), **SMALL),
}
OTHERS = {
    "curved_blocks": lambda size: am.blocks(1, curved=True, layout=LAYOUTS[size], **SMALL),
    "student_t": lambda size: am.student_t(5, **SMALL),
    "mixture": lambda size: am.mixture(am.full(**SMALL), 3, **SMALL),
    "mixture_of_flows": lambda size: am.mixture(am.iaf(2, **SMALL), 2, **SMALL),
}
FAMILIES = NORMALS | FLOWS | OTHERS
SITES = {  # of `exponential_family`
    1: (("rate", "Positive(lower_bound=0.0)", (1,)),),
    2: (("share", "UnitInterval(lower_bound=0.0, upper_bound=1.0)", ()), ("mean", "Real()", ())),
    5: (
        ("shares", "Simplex()", (1, 2)),
        ("rates", "Positive(lower_bound=0.0)", (2,)),
        ("mean", "Real()", ()),
    ),
}
WITHOUT_CONTEXT = {"exponential_family": lambda size: am.exponential_family(sites=SITES[size])}


def cases(names, *shapes):
    """(name, size, told) of every shape that the family can have: a coupling has none on one dimension."""
    return [(n, max(size, 2) if "coupling" in n else size, told) for n in names for size, told in shapes]


@functools.cache
def built_of(name, size, told):
    return (FAMILIES | WITHOUT_CONTEXT)[name](size).build(size, CONTEXT if told else (), key=jax.random.key(1))


def family_of(name, size, told):
    """A built family whose every number is away from where training starts."""
    leaves, treedef = jax.tree.flatten(built_of(name, size, told))
    rng = np.random.default_rng(2)
    far = 0.1 if "spline" in name else 0.3  # further, and three splines are steeper than float32 and a grid resolve
    moved = [x + far * rng.standard_normal(x.shape).astype(np.float32) if eqx.is_array(x) else x for x in leaves]
    return jax.tree.unflatten(treedef, moved)


def context_of(told, scale=1.0):
    return (scale * jnp.asarray([0.5, -1.0, 2.0]), scale * jnp.asarray([-0.3])) if told else ()


def noise_of(family, seed, *count):
    return draw_noise(jax.random.key(seed), family, count)


@eqx.filter_jit
def draw_many(family, context, count, seed=3):
    """Values (count, d) and log densities of draws, their components in proportion to the shares."""
    components = jax.random.categorical(jax.random.key(0), family.log_shares(context), shape=(count,))
    draw = jax.vmap(lambda noise, component: family.sample_and_log_prob(noise, component, context))
    return draw(noise_of(family, seed, count), components)


@eqx.filter_jit
def density_of(family, values, context):
    return jax.vmap(lambda value: family.log_prob(value, context))(values)
