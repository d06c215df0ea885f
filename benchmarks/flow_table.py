"""How good and how fast is each family as q of the globals? Two-dimensional targets and posteriors of posteriordb.

Printed per family: the ELBO and its distance from the log evidence, k-hat and effective sample size of 4,000 weights of
the globals, worst mean (in reference sd) and range of sd ratios where there are reference draws, and seconds of the fit
of 2,000 steps (its compilation included). The evidence is by quadrature in two dimensions; elsewhere it is the
importance-sampling estimate of the family with the largest effective sample size, named below the table. At the end,
`rates`: thousand draws with their density per second, and the seconds of their compilation, by dimension.

    python benchmarks/flow_table.py [--only arK] [--families full,coupling] [--data ../shared/data/posteriordb]
"""

import argparse
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from targets import posteriordb, two_dimensional

import amortax as am
from amortax.importance import shared_draws, shared_prior, unit_bounds
from amortax.intake import to_batch
from amortax.psis import effective_sample_size, pareto_k

DRAWS, TIMED, STEPS = 4000, 16_384, 2000
SIZES = 2, 7, 13
FAMILIES = {
    "diagonal": am.diagonal(),
    "full": am.full(),
    "planar": am.planar(16),
    "coupling": am.coupling(6),
    "spline coupling": am.coupling(4, am.spline()),
    "maf": am.maf(4),
    "iaf": am.iaf(4),
    "mixture": am.mixture(am.full(), 8),
}


def fitted(target, family, **options):
    """(posterior, its units)."""
    units = am.units(target.data, name=target.plate)
    plan = am.amortize(target.model, units, plate=target.plate, shared_family=family)
    return am.fit(plan, units, key=jax.random.key(0), **options), units


def weighed(posterior, units, count=DRAWS):
    """(mean log weight and its standard error, log of the mean weight, k-hat, effective sample size) of the globals."""
    joint, guide = posterior.joint, posterior.guide
    batch = jax.tree.map(jnp.asarray, to_batch(units))
    shared, log_q = shared_draws(jax.random.key(3), guide, count)
    prior = shared_prior(joint, shared, jax.tree.map(lambda x: x[0], batch))
    draws = 16 if guide.local is not None else 1  # of a unit's locals per draw of the globals
    marginal, mean, _ = unit_bounds(jax.random.key(4), guide, joint, shared, batch, jnp.arange(len(units)), draws)
    # float64: sums over a thousand units, and their differences
    bound, weight = (np.asarray(prior - log_q, np.float64) + np.asarray(x, np.float64).sum(0) for x in (mean, marginal))
    evidence = weight.max() + np.log(np.mean(np.exp(weight - weight.max())))
    centred = jnp.asarray(weight - weight.max())
    error = bound.std() / count**0.5
    return bound.mean(), error, float(evidence), float(pareto_k(centred)), float(effective_sample_size(centred))


def compared(posterior, units, reference, num_samples=DRAWS):
    """(worst mean difference in reference sd, least and largest sd ratio)."""
    draws, off, ratio = posterior.sample(units, num_samples=num_samples, key=jax.random.key(1)), [], []
    for name, (mean, sd) in reference.items():
        site, _, index = name.partition("[")
        values = draws[site].values.astype(np.float64)
        values = values[:, int(index[:-1]) - 1] if index else values
        off.append(abs(values.mean() - mean) / sd)
        ratio.append(values.std() / sd)
    return max(off), min(ratio), max(ratio)


def rates(families):
    """Thousand draws with their density per second, and seconds to compile that, in so many dimensions."""
    print("\n### rates\n\n| family | " + " | ".join(f"{size} dimensions" for size in SIZES) + " |")
    print("|---|" + "--:|" * len(SIZES), flush=True)
    for label, recipe in families.items():
        cells = []
        for size in SIZES:
            family = eqx.filter_jit(recipe.build)(size, (), key=jax.random.key(0))
            noise = jax.random.normal(jax.random.key(1), (TIMED, family.noise_size))
            component = jnp.arange(TIMED) % family.num_components
            draw = eqx.filter_jit(lambda f, e, c: jax.vmap(lambda e, c: f.sample_and_log_prob(e, c, ()))(e, c))
            times = []
            for _ in range(8):
                start = time.perf_counter()
                jax.block_until_ready(draw(family, noise, component))
                times.append(time.perf_counter() - start)
            cells.append(f"{TIMED / min(times) / 1e3:,.0f}k, {times[0] - min(times):.1f} s")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def table(name, target, families):
    print(f"\n### {name}\n", flush=True)
    print("| family | ELBO | log evidence - ELBO | k-hat | ESS | worst mean | sd ratios | fit |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    rows = []
    for label, family in families.items():
        start = time.perf_counter()
        posterior, units = fitted(target, family, num_steps=STEPS)
        seconds = time.perf_counter() - start
        elbo, error, evidence, k, ess = weighed(posterior, units)
        against = compared(posterior, units, target.reference) if target.reference else None
        rows.append((label, elbo, error, evidence, k, ess, against, seconds))
        print(f"{name}, {label}: ELBO {elbo:.3f}, k-hat {k:.2f}, ESS {ess:.0f}, {seconds:.0f} s", file=sys.stderr)
    best = max(rows, key=lambda row: row[5])
    known = best[3] if target.log_evidence is None else target.log_evidence()
    for label, elbo, error, _, k, ess, against, seconds in rows:
        worst = "– | –" if against is None else f"{against[0]:.2f} | {against[1]:.2f} to {against[2]:.2f}"
        print(
            f"| {label} | {elbo:.3f} | {known - elbo:.3f} ± {error:.3f} | {k:.2f} | {ess:,.0f} | {worst} "
            f"| {seconds:.0f} s |",
            flush=True,
        )
    source = "by quadrature" if target.log_evidence is not None else f"by importance sampling with {best[0]}"
    print(f"\nLog evidence {known:.3f}, {source}.", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="targets, by comma")
    parser.add_argument("--families", default=",".join(FAMILIES), help="families, by comma")
    parser.add_argument("--data", default="../shared/data/posteriordb")
    options = parser.parse_args()
    families = {name: FAMILIES[name] for name in options.families.split(",")}
    for targets in (two_dimensional(), posteriordb(options.data)):
        for name, target in targets:
            if not options.only or name in options.only.split(","):
                table(name, target, families)
    if not options.only or "rates" in options.only.split(","):
        rates(families)


if __name__ == "__main__":
    main()
