"""The side of `sbibm.py` that is sbi's: one-round NPE with a neural spline flow, PyTorch imported where it is needed.

`pip install torch sbi` in an environment of its own, with this repository's `src` and amortax's packages on PYTHONPATH.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

BOXES = {"gaussian_linear_uniform": (10, 1.0), "gaussian_mixture": (2, 10.0), "two_moons": (2, 1.0), "slcp": (5, 3.0)}


def draws_of_npe(name: str, pairs: Any, observations: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """(draws (observations, draws, d), seconds of training), sbi's defaults but for the flow of sbibm."""
    import torch
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    torch.set_num_threads(1)
    size, side = BOXES[name]
    prior = BoxUniform(-side * torch.ones(size), side * torch.ones(size))
    latents, data = pairs
    theta = torch.from_numpy(np.asarray(latents["theta"], np.float32))
    x = torch.from_numpy(np.asarray(data.arrays["x"], np.float32).reshape(len(theta), -1))
    inference = NPE(prior=prior, density_estimator="nsf", show_progress_bars=False)
    start = time.perf_counter()
    inference.append_simulations(theta, x).train()
    seconds = time.perf_counter() - start
    posterior = inference.build_posterior()
    seen = torch.from_numpy(observations.reshape(len(observations), -1))
    draws = [posterior.sample((count,), x=one, show_progress_bars=False).numpy() for one in seen]
    return np.stack(draws), seconds
