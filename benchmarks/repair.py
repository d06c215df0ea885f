"""Are globals and locals right after `posterior.refine(..., budget="exact")`, and how long does it take beside NUTS?

    python benchmarks/repair.py [eight_schools seeds sleepstudy radon stochastic_volatility item_response_1pl irt_2pl]

prints, for each: the share of parameters (globals and locals) whose mean is within 0.1 reference sd and whose sd is
within 10%, of `sample` and of `refine`, once for every key; rungs and verdicts; and, in the same run, seconds and CPU
seconds of `refine` and of NumPyro's NUTS (four vectorized chains, as long as the least effective size is under 1,000),
with compiling and without.

Effective draws of `refine` are those by which its means differ between keys: S over the mean, over all parameters, of
S var(mean) / sd², at most S; with few keys, a rough number. Those of NUTS are averaged over parameters in the same way.
NUTS samples the same density in the model's own numbers, but eight schools without the funnel (LocScaleReparam).
"""

import argparse
import time
from collections import Counter

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from repair_cases import CASES
from repair_globals import _judge, row, shares, trained

from amortax.refine.coordinates import coordinates_of

SAMPLES = 4000
GOAL, WARMUP, BLOCK, MOST_BLOCKS = 1000.0, 1000, 1000, 20  # of NUTS


def clocked(function):
    """(wall seconds, CPU seconds, what it returns)."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu]), found


def values_of(case, draws):
    return case.values({str(n): x.values for n, x in draws.data_vars.items() if "sample" in x.dims})


def means_and_sds(values, reference):
    """(2, parameters)."""
    flat = [np.asarray(values[name], np.float64).reshape(SAMPLES, -1) for name in reference]
    draws = np.concatenate(flat, axis=1)
    return np.stack([draws.mean(axis=0), draws.std(axis=0)])


def effective(runs):
    """Draws by which the means of runs (keys, 2, parameters) differ."""
    means, sds = np.moveaxis(np.array(runs), 1, 0)
    return min(SAMPLES, 1.0 / np.mean(means.var(axis=0, ddof=1) / np.mean(sds**2, axis=0)))


def told(name, refined):
    """A line on rungs and verdicts."""
    parts = [f"globals {refined.attrs['globals_rung']} {refined.attrs.get('globals_reason', '')}"]
    parts += [f"units {dict(Counter(refined[n].values.tolist()))}" for n in ("rung", "verdict") if n in refined]
    print(f"{name}: {'; '.join(parts)}", flush=True)


def potential_of(posterior, units, key):
    """(minus the log density of all the model's own numbers side by side, how many there are)."""
    problem, _ = coordinates_of(posterior.joint, posterior.guide, units, 1, key)
    ends = np.cumsum([problem.center.shape[0], *(n * d for n, d in problem.sizes)])[:-1]

    def potential(free):
        shared, *parts = jax.numpy.split(free, ends)
        terms = [
            posterior.joint.log_prob(x.reshape(size), shared, group.batch)
            for x, size, group in zip(parts, problem.sizes, problem.groups, strict=True)
        ]
        return -(terms[0].shared + sum(jax.numpy.sum(t.unit) for t in terms))

    return potential, problem.size


def nuts(sampler, start, data, seed):
    """(seconds, draws (chains, steps, numbers)) of a new run, until the least effective size is `GOAL`."""
    sampler.post_warmup_state = None
    found, times = [], []
    for block in range(MOST_BLOCKS):
        key = jax.random.fold_in(jax.random.key(seed), block)
        spent, drawn = clocked(lambda key=key: drawn_by(sampler, start, data, key))
        found.append(drawn)
        times.append(spent)
        sampler.post_warmup_state = sampler.last_state
        draws = np.concatenate(found, axis=1)
        least = judged(draws)[1].min()
        spent = np.sum(times, axis=0)
        print(f"nuts: {4 * draws.shape[1]} draws, least ESS {least:.0f}, CPU {spent[1]:.1f} s", flush=True)
        if least >= GOAL:
            break
    return spent, draws


def drawn_by(sampler, start, data, key):
    """Draws (chains, steps, numbers) of one block."""
    sampler.run(key, init_params=start, **data)
    drawn = jax.tree.leaves(sampler.get_samples(group_by_chain=True))
    return np.concatenate([np.asarray(x).reshape(*x.shape[:2], -1) for x in drawn], axis=2)


def judged(draws):
    """(R-hat, least of bulk and tail effective size) of every number; steps of chains thinned to one block's."""
    steps = np.linspace(0, draws.shape[1] - 1, BLOCK).astype(int)
    parts = [_judge(draws[:, steps, i : i + 256]) for i in range(0, draws.shape[2], 256)]
    return tuple(np.concatenate([np.asarray(p[i]) for p in parts]) for i in range(2))


def beside_nuts(case, posterior, units):
    """Prints what NUTS takes."""
    if case.decentred:
        kernel, start = NUTS(handlers.reparam(case.model, config=case.decentred)), None
        data = dict(units.arrays)
    else:
        potential, size = potential_of(posterior, units, jax.random.key(6))
        kernel, data = NUTS(potential_fn=potential), {}
        start = 0.1 * jax.random.normal(jax.random.key(7), (4, size))
    sampler = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=BLOCK,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    times = []
    for seed in range(2):
        spent, draws = nuts(sampler, start, data, seed)
        times.append(spent)
    rhat, ess = judged(draws)
    mean = 1.0 / np.mean(1.0 / ess)
    print(f"nuts: R-hat {rhat.max():.3f}, least ESS {ess.min():.0f}, mean {mean:.0f}, of {4 * draws.shape[1]}")
    return times, mean


def measure(name, saved, keys):
    """Prints what the module's docstring says of one case."""
    case = CASES[name]()
    reference = case.reference()  # first: afterwards float64 meets what was traced in float32
    posterior = trained(case, name, saved)
    draws = posterior.sample(case.units, num_samples=SAMPLES, key=jax.random.key(100))
    row(f"{name} before", *shares(values_of(case, draws), reference))
    times, runs = [], []
    for seed in range(keys):
        key = jax.random.key(100 + seed)
        spent, refined = clocked(
            lambda key=key: posterior.refine(case.units, num_samples=SAMPLES, key=key, budget="exact")
        )
        values = values_of(case, refined)
        told(name, refined)
        row(f"{name} after, key {seed}", *shares(values, reference))
        times.append(spent)
        runs.append(means_and_sds(values, reference))
        print(f"refine: wall {spent[0]:.1f} s, CPU {spent[1]:.1f} s", flush=True)
    ours = [times[0], np.median(times[1:], axis=0)], effective(runs)
    theirs = beside_nuts(case, posterior, posterior.answerable(case.units))
    for label, ((first, later), ess) in {"refine": ours, "nuts": theirs}.items():
        with_compiling, without = (f"wall {x[0]:.1f} s, CPU {x[1]:.1f} s" for x in (first, later))
        print(f"{label}: {ess:.0f} effective draws; {with_compiling} with compiling; {without} without", flush=True)
    print_ratio(ours, theirs)


def print_ratio(ours, theirs):
    """Seconds of NUTS for as many effective draws, over those of `refine`."""
    for place, label in enumerate(("with compiling", "without")):
        wall, cpu = (theirs[0][place] / theirs[1]) / (ours[0][place] / ours[1])
        print(f"NUTS / refine, per effective draw, {label}: wall {wall:.2f}, CPU {cpu:.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CASES))
    parser.add_argument("--saved", help="folder of trained posteriors")
    parser.add_argument("--keys", type=int, default=5)
    given = parser.parse_args()
    if given.keys < 2:
        parser.error("--keys: two or more, by whose spread draws are counted")
    print(
        "| case | parameters | within 0.1 sd and 10% | worst mean [sd] | sd ratios |\n|---|---|---|---|---|", flush=True
    )
    for name in given.names or list(CASES):
        measure(name, given.saved, given.keys)


if __name__ == "__main__":
    main()
