"""Natural gradients against Adam: steps and seconds until the bound is within 0.01 nats per unit of the best found.

    python benchmarks/natural.py ../shared/data [--only ppca,irt,lda]

The same guide and data for both. A normal of d numbers with a full covariance (PPCA) takes 2 d draws of the globals in
a step of natural gradients, which fit a covariance to them, and few for Adam; independent ones (item response) as few.
Every row is a fit of its own with so many steps, compiled before: Adam's step falls, and parameters are averaged, as in
any fit. Bounds are of all units, with the same 64 draws of the globals.
"""

import argparse
import functools
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.sparse import csr_matrix

import amortax as am
from amortax.intake import drop_full_masks, to_batch
from amortax.models import item_response, lda
from amortax.objectives.base import Minibatch

WITHIN = 0.01  # nats per unit
GRID = (10, 20, 40, 80, 160, 320, 640, 1280, 2560)


def ppca(x):
    """Loadings with a zero above their diagonal, so that they can't be rotated, mean and noise: 24 Bayesian globals."""
    loose = numpyro.sample("loadings", dist.Normal(0.0, 1.0).expand([15]).to_event(1))
    mean = numpyro.sample("mean", dist.Normal(0.0, 3.0).expand([8]).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    loadings = jnp.concatenate([loose[:1], jnp.zeros(1), loose[1:]]).reshape(8, 2)
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ loadings.T + mean, noise).to_event(1), obs=x)


def ppca_case(_):
    rng = np.random.default_rng(0)
    loadings = 1.5 * rng.standard_normal((8, 2)) * np.array([[1, 0], *[[1, 1]] * 7])
    x = rng.standard_normal((1000, 2)) @ loadings.T + rng.standard_normal(8) + 0.6 * rng.standard_normal((1000, 8))
    return ppca, am.units({"x": x.astype(np.float32)}, name="unit"), am.full(), {"batch_size": 1000}, (4, 48)


def item_response_case(folder):
    """One parameter an item; Inference Gym's `mean_student_ability` is minus the mean difficulty."""
    data = np.load(folder / "inference_gym/item_response_1pl/data.npz")
    names = {"person": "student_ids", "item": "question_ids", "correct": "correct"}
    table = {name: data[stored].astype(np.int32) for name, stored in names.items()}
    priors = item_response.Priors(1.0, dist.Normal(-0.75, 1.0), 1.0)
    model = functools.partial(item_response.one_parameter, num_items=100, priors=priors)
    units = am.from_table(table, unit="person", columns=["item", "correct"])
    return model, units, am.diagonal(), {}, (8, 8)


def lda_case(folder):
    """Ten topics of the 300 most frequent words in the first 1,000 documents."""
    z = np.load(folder / "text_20ng/20ng_bow.npz")
    indptr = z["tr_indptr"]
    counts = csr_matrix((z["tr_counts"].astype(int), z["tr_indices"].astype(int), indptr), (len(indptr) - 1, 3072))
    words = np.argsort(-np.asarray(counts.sum(axis=0)).ravel())[:300]
    counts = counts[:, words].toarray()
    counts = counts[counts.sum(axis=1) > 0][:1000]
    units = am.units(lda.documents(counts), name="document")
    return lda.collapsed(10), units, am.exponential_family(), {"batch_size": 200}, (2, 2)


CASES = {"ppca": ppca_case, "irt": item_response_case, "lda": lda_case}
OPTIMIZERS = {
    "adam": None,
    "natural, robbins_monro(10, 0.7)": am.natural(),
    "natural, 0.1": am.natural(0.1),
    "natural, 0.3": am.natural(0.3),
}


@eqx.filter_jit
def bound(posterior_pair, batch):
    joint, guide = posterior_pair
    size = jax.tree.leaves(batch)[0].shape[0]
    minibatch = Minibatch((batch,), jnp.asarray(float(size)), jnp.zeros((), jnp.int32))
    return am.ELBO(64)(jax.random.key(9), guide, joint, minibatch).elbo_per_unit


def bounds_of(case, folder, optimizer, most):
    """(steps, seconds, bound per unit) of fits of more and more steps."""
    model, units, family, options, particles = case(folder)
    plan = am.amortize(model, units, plate=units.name, shared_family=family)
    batch = jax.tree.map(jnp.asarray, drop_full_masks(to_batch(units), plan.structure))
    draws = particles[optimizer is not None]
    options = {"objective": am.ELBO(draws), "optimizer": optimizer, "key": jax.random.key(0)} | options
    am.fit(plan, units, num_steps=1, **options)
    found = []
    for steps in [n for n in GRID if n <= most]:
        posterior = am.fit(plan, units, num_steps=steps, **options)
        found.append((steps, posterior.record.seconds, float(bound((posterior.joint, posterior.guide), batch))))
        print("   ", *(f"{number:.4f}" for number in found[-1]), flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--optimizers", default="adam;" + ";".join(k for k in OPTIMIZERS if k != "adam"))
    parser.add_argument("--most", type=int, default=GRID[-1])
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        found = {}
        for kind in arguments.optimizers.split(";"):
            print(name, kind, flush=True)
            found[kind] = bounds_of(CASES[name], arguments.data, OPTIMIZERS[kind], arguments.most)
        best = max(bound for rows in found.values() for *_, bound in rows)
        print(f"{name}: best bound {best:.4f} nats per unit")
        for kind, rows in found.items():
            reached = next((row for row in rows if row[2] >= best - WITHIN), None)
            said = f"{reached[0]} steps, {reached[1]:.2f} s" if reached else f"not reached: {rows[-1][2] - best:.4f}"
            print(f"  {kind}: {said}", flush=True)


if __name__ == "__main__":
    main()
