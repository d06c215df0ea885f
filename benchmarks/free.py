"""What does an encoder save, and what does it lose? Own parameters per unit beside an amortized guide, same family.

Linear-Gaussian: 100,000 units with 10 numbers and 3 locals each, exact posteriors known: time, parameters, divergence
from the exact posterior on 2,000 of the units, and the gap that `compare` finds there. Item response: 400 students, 101
globals, 30,012 answers, from the shared data beside the repository: the same against the reference draws. And the time
of a step as units grow.

    python benchmarks/free.py [--units 100000] [--steps N] [--item-steps 1000]
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/exact"))

from conjugate import LinearGaussian, normal_kl, normals_of  # noqa: E402

ENCODERS = {"free": am.free(), "amortized": None}


def linear(count):
    """(exact answers, model, units)."""
    rng = np.random.default_rng(0)
    weight, mean = (rng.standard_normal(shape).astype(np.float32) for shape in ((10, 3), 10))
    exact = LinearGaussian(weight, mean, 0.5)

    def model(x):
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
            numpyro.sample("x", dist.Normal(z @ weight.T + mean, 0.5).to_event(1), obs=x)

    return exact, model, am.units({"x": exact.simulate(rng, count)[1]}, name="unit")


def linear_gaussian(count, num_steps):
    exact, model, units = linear(count)
    some = units.take(np.sort(np.random.default_rng(1).permutation(count)[:2000]))
    print(f"linear-Gaussian, {count:,} units")
    found = fitted(model, units, num_steps)
    for name, posterior in found.items():
        kl = normal_kl(*normals_of(posterior, some), *exact.posterior(some.arrays["x"]))
        print(f"  {name:9}: KL to the exact posterior, mean {kl.mean():.5f}, p99 {np.quantile(kl, 0.99):.5f}")
    am.compare(*found.values(), some, key=jax.random.key(1))


def step_time(count):
    """Milliseconds of one of 2,000 steps, from runs that differ in nothing else."""
    _, model, units = linear(count)
    plan = am.amortize(model, units, plate="unit", encoder=am.free())
    runs = [am.fit(plan, units, key=jax.random.key(0), num_steps=n, batch_size=4096) for n in (100, 500, 2500)]
    seconds = [posterior.record.seconds for posterior in runs[1:]]
    print(f"  {count:9,} units: {(seconds[1] - seconds[0]) / 2:.2f} ms a step of 4,096 units")


def item_response(folder, num_steps):
    data, reference = np.load(folder / "data.npz"), np.load(folder / "reference.npz")

    def model(question, correct=None):
        mean = numpyro.sample("mean_student_ability", dist.Normal(0.75, 1.0))
        difficulty = numpyro.sample("question_difficulty", dist.Normal(0.0, 1.0).expand([100]))
        with numpyro.plate("student", question.shape[0], dim=-2):
            ability = numpyro.sample("centered_student_ability", dist.Normal(0.0, 1.0))
            with numpyro.plate("response", question.shape[1], dim=-1):
                logits = ability + mean - difficulty[question]
                numpyro.sample("correct", dist.Bernoulli(logits=logits), obs=correct)

    columns = {"student": "student_ids", "question": "question_ids", "correct": "correct"}
    table = {name: data[column].astype(np.int32) for name, column in columns.items()}
    units = am.from_table(table, unit="student", columns=["question", "correct"])
    units = units.take(np.argsort(units.labels))
    print(f"\nitem response, {len(units)} students, 101 globals, {len(table['student']):,} answers")
    found = fitted(model, units, num_steps)
    for name, posterior in found.items():
        draws = posterior.sample(units, num_samples=4000, key=jax.random.key(2))
        for site in ("question_difficulty", "centered_student_ability"):
            mean, sd = reference[f"mean__{site}"], reference[f"sd__{site}"]
            values = draws[site].values
            off, ratio = np.abs(values.mean(axis=0) - mean) / sd, values.std(axis=0) / sd
            print(f"  {name:9}: {site}: worst mean {off.max():.3f} sd, sds {ratio.min():.3f} to {ratio.max():.3f}")
    am.compare(*found.values(), units, key=jax.random.key(3))


def fitted(model, units, num_steps):
    """Both posteriors, each timed from its own first compilation."""
    found = {}
    for name, encoder in ENCODERS.items():
        plan = am.amortize(model, units, plate=units.name, encoder=encoder)
        found[name] = am.fit(plan, units, key=jax.random.key(0), num_steps=num_steps)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=None, help="without it, until the bound stops rising")
    parser.add_argument("--item-steps", type=int, default=1000)
    options = parser.parse_args()
    linear_gaussian(options.units, options.steps)
    print("\nown parameters, time of a step as units grow")
    for count in (10_000, 100_000, 1_000_000):
        step_time(count)
    folder = ROOT.parent / "shared/data/inference_gym/item_response_1pl"
    if folder.is_dir():
        item_response(folder, options.item_steps)
    else:
        print(f"item response left out: no {folder}")


if __name__ == "__main__":
    main()
