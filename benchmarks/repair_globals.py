"""Do globals and locals become right where q(v) was not, and how fast beside NUTS? Against reference posteriors.

    python benchmarks/repair_globals.py [radon sleepstudy seeds item_response_1pl irt_2pl eight_schools]

prints, for each: the share of parameters (globals and locals) whose mean is within 0.1 reference sd and whose sd is
within 10%, before and after the repair of the globals; its rung; and the least effective draws per CPU second of
joint HMC and of NumPyro's NUTS (four vectorized chains, the same density in the model's own numbers).
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, NUTS
from repair_cases import CASES

import amortax as am
from amortax.chunks import bucketed
from amortax.intake import drop_full_masks, to_batch
from amortax.refine.coordinates import coordinates_of
from amortax.refine.globals import repaired_globals
from amortax.refine.whole import CHAINS, _judge, whole_draws

SAMPLES = 4000
TOGETHER = 100  # draws placed at once


def shares(values, reference):
    """(share within 0.1 sd and 10%, worst mean, least and largest sd ratio, number of parameters)."""
    off, ratio = [], []
    for name, (mean, sd) in reference.items():
        draws = np.asarray(values[name], np.float64)
        draws = draws.reshape(len(draws), *np.shape(mean)) if np.size(draws[0]) == np.size(mean) else draws
        off.append(np.ravel(np.abs(draws.mean(axis=0) - mean) / sd))
        ratio.append(np.ravel(draws.std(axis=0) / sd))
    off, ratio = np.concatenate(off), np.concatenate(ratio)
    good = (off < 0.1) & (np.abs(ratio - 1) < 0.1)
    return np.mean(good), off.max(), ratio.min(), ratio.max(), len(off)


@eqx.filter_jit
def placed(joint, guide, batch, shared, local, key):
    """Values of all sites at draws of the globals (S, g), and locals (S, N, d), or None: drawn by q given those."""
    contexts = guide.encode(batch)

    def one(draw):
        shared, local, key = draw

        def unit(local, index, context, unit):
            if local is None:
                local, _ = guide.sample_local(jax.random.fold_in(key, index), context, shared, unit, joint)
            found = joint.constrain(local, shared, unit)
            own = {s.name for s in joint.structure.sites if s.per_unit}
            return {n: x for n, x in found.items() if n in own}, {n: x for n, x in found.items() if n not in own}

        count = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
        each, all_of_them = jax.vmap(unit, in_axes=(0, 0, 0, 0), out_axes=(0, None))(local, count, contexts, batch)
        return each | all_of_them

    return jax.lax.map(one, (shared, local, jax.random.split(key, len(shared))), batch_size=TOGETHER)


def values(posterior, units, shared, local, key):
    batch = jax.tree.map(jnp.asarray, drop_full_masks(to_batch(bucketed(units)), posterior.joint.structure))
    local = None if local is None else jnp.asarray(local, jnp.float32)
    found = placed(posterior.joint, posterior.guide, batch, jnp.asarray(shared, jnp.float32), local, key)
    return jax.tree.map(np.asarray, found)


def nuts(posterior, units, key, warmup=1000, draws=1000):
    """(CPU seconds with compiling, of warm-up and draws alone, draws (chains, steps, numbers)) of NUTS."""
    problem, _ = coordinates_of(posterior.joint, posterior.guide, units, 1, key)
    sizes, globals_size = problem.sizes, problem.center.shape[0]

    def potential(free):
        parts = jnp.split(free, np.cumsum([globals_size, *(n * d for n, d in sizes)])[:-1])
        terms = [
            posterior.joint.log_prob(x.reshape(size), parts[0], group.batch)
            for x, size, group in zip(parts[1:], sizes, problem.groups, strict=True)
        ]
        return -(terms[0].shared + sum(jnp.sum(t.unit) for t in terms))

    start = 0.1 * jax.random.normal(key, (4, problem.size))
    kernel = NUTS(potential_fn=potential)
    sampler = MCMC(
        kernel, num_warmup=warmup, num_samples=draws, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    seconds = []
    for seed in range(2):
        begun = time.process_time()
        sampler.run(jax.random.key(seed), init_params=start)
        found = np.asarray(sampler.get_samples(group_by_chain=True))
        seconds.append(time.process_time() - begun)
    return seconds[0], seconds[1], found


def least_ess(draws):
    """(largest R-hat, least effective size) of all draws (chains, steps, numbers)."""
    found = [_judge(jnp.asarray(draws[:, :, i : i + 256])) for i in range(0, draws.shape[2], 256)]
    return max(float(np.max(rhat)) for rhat, _ in found), min(float(np.min(ess)) for _, ess in found)


def trained(case, name, saved):
    """The posterior, from a file where it was trained before."""
    path = None if saved is None else Path(saved) / f"{name}.amx"
    if path is not None and path.exists():
        return am.load(path, model=case.model)
    plan = am.amortize(case.model, case.units, plate=case.plate, **case.plan)
    posterior = am.fit(plan, case.units, key=jax.random.key(0), **case.fit)
    if path is not None:
        posterior.save(path)
    return posterior


def row(label, good, worst, low, high, count):
    print(f"| {label} | {count} | {good:.1%} | {worst:.3f} | {low:.3f} to {high:.3f} |", flush=True)


def measure(name, saved, with_nuts):
    """Prints what the module's docstring says of one case."""
    case = CASES[name]()
    reference = case.reference()  # first: afterwards float64 meets what was traced in float32
    posterior = trained(case, name, saved)
    units = posterior.answerable(case.units)
    joint, guide = posterior.joint, posterior.guide
    draws = posterior.sample(case.units, num_samples=SAMPLES, key=jax.random.key(1))
    row(f"{name} before", *shares(case.values({str(n): x.values for n, x in draws.data_vars.items()}), reference))
    found = repaired_globals(joint, guide, units, num_samples=SAMPLES, key=jax.random.key(2))
    local = None if found.whole is None else found.whole.local
    after = values(posterior, units, found.shared, local, jax.random.key(3))
    row(f"{name} after: {found.rung}", *shares(case.values(after), reference))
    print({n: round(x, 3) for n, x in found.numbers.items()}, found.reason, flush=True)
    print(f"wall time of the repair, compiling included: {found.numbers.get('globals_seconds', 0.0):.1f} s", flush=True)
    seconds = []
    for seed in (4, 5):
        if seed == 4:
            jax.clear_caches()
        begun = time.process_time()
        whole = whole_draws(joint, guide, units, key=jax.random.key(seed))
        seconds.append(time.process_time() - begun)
    if found.whole is None:
        after = values(posterior, units, whole.shared, whole.local, jax.random.key(3))
        row(f"{name} hmc", *shares(case.values(after), reference))
    local = whole.local.reshape(len(whole.local), -1)
    chains = np.concatenate([whole.shared, local], axis=1).reshape(CHAINS, -1, whole.shared.shape[1] + local.shape[1])
    moves = f"{whole.divergences} divergences, acceptance {whole.acceptance:.2f}, {whole.gradients} gradients"
    speed("hmc", *seconds, chains, f"; {moves} {whole.reason}")
    if with_nuts:
        speed("nuts", *nuts(posterior, units, jax.random.key(6)), "")


def speed(label, first, second, chains, more):
    """Prints effective draws per CPU second, with compiling and without."""
    rhat, ess = least_ess(chains)
    rates = f"{first:.1f} s ({ess / first:.1f}/s) with compiling, {second:.1f} s ({ess / second:.1f}/s) without"
    count = chains.shape[0] * chains.shape[1]
    print(f"{label}: R-hat {rhat:.3f}, least ESS {ess:.0f} of {count}; CPU {rates}{more}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(CASES))
    parser.add_argument("--saved", help="folder of trained posteriors")
    parser.add_argument("--without-nuts", action="store_true")
    given = parser.parse_args()
    print(
        "| case | parameters | within 0.1 sd and 10% | worst mean [sd] | sd ratios |\n|---|---|---|---|---|", flush=True
    )
    for name in given.names or list(CASES):
        measure(name, given.saved, not given.without_nuts)


if __name__ == "__main__":
    main()
