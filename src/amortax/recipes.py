"""Which recipes are there? All of them by name, as stored plans and job files say them.

Apart from `defaults`, which imports those that it chooses itself: the others take 4% of an import of amortax.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._recipe import Recipe
from .encoders.causal import causal
from .encoders.dense import dense
from .encoders.free import free
from .encoders.image import convolution
from .encoders.sequence import attention_sequence, recurrent, temporal_convolution
from .encoders.sets import attention_set, deep_set
from .families.autoregressive import iaf, maf
from .families.blocks import blocks
from .families.coupling import coupling
from .families.discrete import categorical, factorised
from .families.exponential import exponential_family
from .families.filtering import filtering
from .families.heavy import student_t
from .families.markov import markov
from .families.mixture import mixture
from .families.nested import nested
from .families.normal import diagonal, full, low_rank
from .families.planar import planar
from .families.spline import spline
from .families.transforms import affine
from .heads import concatenate, newton

RECIPES: Mapping[str, type[Recipe]] = {
    r.__name__: r
    for r in (
        *(dense, deep_set, attention_set, convolution, causal, free, concatenate, newton),
        *(recurrent, temporal_convolution, attention_sequence),
        *(diagonal, full, low_rank, blocks, student_t, mixture, nested, markov, filtering),
        *(exponential_family, categorical, factorised),
        *(coupling, maf, iaf, planar, affine, spline),
    )
}
