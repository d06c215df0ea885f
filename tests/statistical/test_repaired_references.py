"""Are globals and locals right after `refine(..., budget="exact")`, where q(v) was not? Against published draws.

`shared` holds the data; a clone without it skips. Printed by `pytest -m slow -s`. More posteriors are in
`benchmarks/repair.py`.
"""

import jax
import numpy as np
import pytest
import xarray
from references import differences, read_reference
from targets import eight_schools

import amortax as am

pytestmark = pytest.mark.slow


def test_eight_schools(shared):
    """Centred: q(tau) is a third too wide. Five keys together, since tau's sd is the hardest number to know."""
    y, sigma = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    units = am.units({"y": y, "sigma": sigma}, name="school")
    posterior = am.fit(am.amortize(eight_schools, units, plate="school"), units, key=jax.random.key(0), num_steps=2000)
    path = shared / "data/posteriordb/eight_schools-eight_schools_noncentered/reference_summary.csv"
    known = read_reference(path)
    known = {n: x for n, x in known.items() if n in ("mu", "tau") or n.startswith("theta[")}
    _, _, high = differences(posterior.sample(units, num_samples=4000, key=jax.random.key(1)), {"tau": known["tau"]})
    assert high > 1.2
    runs = [posterior.refine(units, key=jax.random.key(k), num_samples=4000, budget="exact") for k in range(2, 7)]
    assert all(run.attrs["globals_rung"] == "hmc" and np.all(run["verdict"] == "PASS") for run in runs)
    draws = xarray.concat([run.drop_vars("seconds") for run in runs], dim="sample", data_vars="minimal")
    _, low, high = differences(draws, {"tau": known["tau"]})
    assert low > 0.95
    assert high < 1.05
    off, low, high = differences(draws, known)
    assert off < 0.1
    assert low > 0.9
    assert high < 1.1
