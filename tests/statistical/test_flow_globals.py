"""Do flows as q of the globals reach what a full normal does not? Two dimensions by quadrature, and real posteriors.

The targets are those of `benchmarks/targets.py`, whose table is in `benchmarks/RESULTS.md`.
"""

import equinox as eqx
import jax
import pytest
from flow_table import compared, fitted, weighed
from targets import posteriordb, two_dimensional

import amortax as am
from amortax import demo
from amortax.models import radon
from amortax.train.schedule import of_globals

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)

TARGETS = dict(two_dimensional())


@pytest.mark.parametrize(("name", "most"), [("banana", 0.02), ("funnel", 0.05)])
def test_a_coupling_bends_to_the_target(name, most):
    target = TARGETS[name]
    posterior, units = fitted(target, am.coupling(4), num_steps=1500)
    elbo, error, _, k, ess = weighed(posterior, units)
    gap = target.log_evidence() - elbo
    print(f"{name}: log Z - ELBO {gap:.4f} ± {error:.4f}, k-hat {k:.2f}, ESS {ess:.0f} of 4000")
    assert -5 * error - 2e-3 < gap < most + 5 * error  # 2e-3: float32, and the grid of the evidence


def test_networks_of_a_flow_move_like_other_networks():
    """Not ten times faster, as the free numbers of q(v) do."""
    target = TARGETS["banana"]
    plan = am.amortize(target.model, target.data, plate="target", shared_family=am.coupling(2))
    shapes = eqx.filter(plan.skeleton(), lambda x: isinstance(x, jax.ShapeDtypeStruct))
    _, guide = of_globals(({}, shapes))
    assert jax.tree.leaves(guide.shared.family.outer.parameters) == [True]
    assert not any(jax.tree.leaves(guide.shared.family.layers))


@pytest.mark.slow
def test_radon_with_a_flow_for_its_globals(tmp_path):
    """All 85 counties against Stan: a full normal reads sd ratios of the scales and k-hat that are worse."""
    demo.write_project(tmp_path, every=True, seed=0, num_steps=1000)
    counties = am.from_table(tmp_path / "training.csv", unit="county", **demo.COLUMNS)
    plan = am.amortize(radon.model, counties, plate="county", shared_family=am.coupling(4))
    posterior = am.fit(plan, counties, key=jax.random.key(0), num_steps=1000)
    off, low, high = compared(posterior, counties, dict(globals_of(radon.reference())))
    numbers = posterior.check(counties, key=jax.random.key(2), num_samples=100, checks=WEIGHTS).numbers
    print(
        f"worst mean {off:.3f} sd, sd ratios {low:.3f} to {high:.3f}, k-hat {numbers['globals_pareto_k']:.2f}, ", end=""
    )
    print(f"ESS {numbers['globals_ess']:.0f} of {numbers['globals_draws']:.0f}, fit {posterior.record.seconds:.0f} s")
    assert off < 0.15
    assert low > 0.85
    assert high < 1.15
    assert numbers["globals_pareto_k"] < 0.7
    assert numbers["globals_ess"] > 0.9 * numbers["globals_draws"]


def globals_of(reference):
    return ((name, known) for name, known in reference.items() if not name.startswith("county_effect["))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight_schools", "low_dim_gauss_mix", "hmm_drive_0"])
def test_posteriors_of_posteriordb(shared, name):
    target = dict(posteriordb(shared / "data/posteriordb"))[name]
    posterior, units = fitted(target, am.coupling(6), num_steps=3000)
    off, low, high = compared(posterior, units, target.reference)
    _, _, _, k, ess = weighed(posterior, units)
    print(f"{name}: worst mean {off:.3f} sd, sd ratios {low:.3f} to {high:.3f}, k-hat {k:.2f}, ESS {ess:.0f} of 4000")
    assert off < 0.15
    assert low > 0.85
    assert high < 1.15
    assert k < 0.7 or ess > 0.99 * 4000  # of weights that hardly differ, k-hat says nothing
