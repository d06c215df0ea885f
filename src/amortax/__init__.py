"""amortax: write a NumPyro model, get an amortized posterior.

guide = amortax.amortize(model, data, plate="county")
posterior = amortax.fit(guide, data, key=jax.random.key(0))
draws = posterior.sample(new_data, num_samples=1000, key=jax.random.key(1))
report = posterior.check(new_data, key=jax.random.key(2))
"""

import importlib
from typing import Any

_HOME = {
    "amortize": "plan",
    "fit": "fitting",
    "fit_density": "train.density",
    "load": "posterior",
    "simulate": "pairs",
    "compare": "comparison",
    "recalibrate": "recalibrated",
    "spread": "seeds",
    "to_datatree": "interop",
    "units": "data.arrays",
    "from_table": "data.table",
    "Units": "data.units",
    "Run": "train.run",
    "ELBO": "objectives.elbo",
    "IWELBO": "objectives.iwelbo",
    "Renyi": "objectives.iwelbo",
    "ForwardKL": "objectives.forward",
    "WakeSleep": "objectives.wake_sleep",
    "Sum": "objectives.sum",
    "warm_up": "objectives.schedules",
    "dense": "encoders.dense",
    "deep_set": "encoders.sets",
    "attention_set": "encoders.sets",
    "convolution": "encoders.image",
    "recurrent": "encoders.sequence",
    "temporal_convolution": "encoders.sequence",
    "attention_sequence": "encoders.sequence",
    "causal": "encoders.causal",
    "free": "encoders.free",
    "diagonal": "families.normal",
    "full": "families.normal",
    "low_rank": "families.normal",
    "blocks": "families.blocks",
    "nested": "families.nested",
    "markov": "families.markov",
    "filtering": "families.filtering",
    "exponential_family": "families.exponential",
    "student_t": "families.heavy",
    "mixture": "families.mixture",
    "categorical": "families.discrete",
    "factorised": "families.discrete",
    "coupling": "families.coupling",
    "maf": "families.autoregressive",
    "iaf": "families.autoregressive",
    "planar": "families.planar",
    "affine": "families.transforms",
    "spline": "families.spline",
    "natural": "train.natural",
    "robbins_monro": "train.natural",
    "newton": "heads",
    "concatenate": "heads",
    "Plan": "plan",
    "Posterior": "posterior",
    "Comparison": "comparison",
    "Recalibration": "recalibrated",
    "Spread": "seeds",
    "Record": "train.record",
    "Checks": "checks.options",
    "Report": "checks.report",
    "Terms": "_types",
    "AmortaxError": "_errors",
    "DataError": "_errors",
    "ModelError": "_errors",
    "GuideError": "_errors",
    "FitError": "_errors",
    "ArtifactError": "_errors",
}
_MODULES = ("plots",)  # public by their own name

__all__ = [*sorted([*_HOME, *_MODULES]), "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'amortax' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
