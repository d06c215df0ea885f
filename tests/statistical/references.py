"""How far is an answer from a reference posterior that nobody here made? In reference sd, site by site."""

import csv

import jax
import numpy as np

import amortax as am

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)


def offsets(draws, reference):
    """|mean difference| in reference sd and sd ratio of every quantity of `name -> (mean, sd)`."""
    off, ratio = [], []
    for name, (mean, sd) in reference.items():
        site, _, index = name.partition("[")
        values = draws[site].values
        values = values[:, int(index[:-1]) - 1] if index else values
        off.append(abs(values.mean() - mean) / sd)
        ratio.append(values.std() / sd)
    return np.array(off), np.array(ratio)


def differences(draws, reference):
    """(largest |mean difference| in reference sd, least and largest sd ratio) over `name -> (mean, sd)`."""
    off, ratio = offsets(draws, reference)
    print(f"worst mean {max(off):.3f} sd, sd ratios {min(ratio):.3f} to {max(ratio):.3f}, over {len(off)} quantities")
    return max(off), min(ratio), max(ratio)


def read_reference(path):
    with open(path) as file:
        return {row["name"]: (float(row["mean"]), float(row["sd"])) for row in csv.DictReader(file)}


def answer(model, units, plate, shared_family=None, **options):
    plan = am.amortize(model, units, plate=plate, shared_family=shared_family)
    posterior = am.fit(plan, units, key=jax.random.key(0), **options)
    draws = posterior.sample(units, num_samples=4000, key=jax.random.key(1))
    return draws, posterior.check(units, key=jax.random.key(2), checks=WEIGHTS)
