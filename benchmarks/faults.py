"""What does `posterior.check` see of each planted fault, and is it silent on exact posteriors? The detection table.

Every fault is planted in a guide of the usual parts, by training it wrongly or by moving its numbers, and checked with
what `check` runs by default. Exact posteriors are Gaussian models, where one Newton step of the head is exact, and a
mixture, whose classes are summed; each is checked with several keys, and any reason of any level is an alarm. Columns
are the codes of all reasons that any run gave, so that new parts of `check` appear by themselves.

    python benchmarks/faults.py [--keys 7] [--only wide]
"""

import argparse
import dataclasses
import functools
import math
import time
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am
from amortax.intake import as_units, conform, to_batch
from amortax.objectives.base import AbstractObjective
from amortax.train.initialise import initialise

UNITS, STEPS = 300, 1500
WEIGHT = np.array([[1.0, 0.8, 0.0], [0.6, -0.4, 1.0], [0.9, 0.7, 0.3], [0.0, 0.5, -0.8]], np.float32)


def linear(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ WEIGHT.T, 0.6).to_event(1), obs=x)


def linear_data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((UNITS, 3)) @ WEIGHT.T + 0.6 * rng.standard_normal((UNITS, 4))
    return {"x": x.astype(np.float32)}


def counts(x, *, jacobian=True):
    with numpyro.plate("unit", x.shape[0]):
        rate = numpyro.sample("rate", dist.Gamma(3.0, 1.0))
        if not jacobian:  # takes back what the change from rate to log rate adds
            numpyro.factor("lost", -jnp.log(rate))
        numpyro.sample("x", dist.Poisson(rate[:, None]).expand([x.shape[0], 5]).to_event(1), obs=x)


def counts_data():
    rng = np.random.default_rng(0)
    return {"x": rng.poisson(rng.gamma(3.0, size=(UNITS, 1)), size=(UNITS, 5)).astype(np.int32)}


def sides(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 5.0))
        numpyro.sample("x", dist.Normal(jnp.abs(z), 0.25), obs=x)


def sides_data():
    return {"x": (4 + 0.3 * np.random.default_rng(0).standard_normal(UNITS)).astype(np.float32)}


def groups(x):
    level = numpyro.sample("level", dist.Normal(0, 2))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, 1.5))
        numpyro.sample("x", dist.Normal(z, 0.8), obs=x)


def groups_data():
    return {"x": (1 + 1.7 * np.random.default_rng(0).standard_normal(UNITS)).astype(np.float32)}


def schools(x):
    with numpyro.plate("unit", x.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0, 1))
        with numpyro.plate("pupil", x.shape[1], dim=-1):
            skill = numpyro.sample("skill", dist.Normal(level, 1.0))
            numpyro.sample("x", dist.Normal(skill, 0.7), obs=x)


def schools_data():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, size=UNITS)
    return {"x": [(rng.standard_normal() + 1.2 * rng.standard_normal(n)).astype(np.float32) for n in lengths]}


def classes(x):
    with numpyro.plate("unit", x.shape[0]):
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        numpyro.sample("x", dist.Normal(jnp.array([-1.0, 0.5, 2.0])[c], 0.6), obs=x)


def classes_data():
    rng = np.random.default_rng(0)
    means = np.array([-1.0, 0.5, 2.0])[rng.choice(3, size=UNITS, p=[0.2, 0.5, 0.3])]
    return {"x": (means + 0.6 * rng.standard_normal(UNITS)).astype(np.float32)}


def untrained(model, data, **recipes):
    """The posterior before the first step, its local family at N(0, 1): where one Newton step is exact, so is it."""
    plan = am.amortize(model, data, plate="unit", **recipes)
    units = as_units(data, plan.model, "unit")
    joint, guide = initialise(plan, to_batch(units), jax.random.key(0))
    if guide.local is not None:
        still = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, guide.local.family)
        guide = eqx.tree_at(lambda g: g.local.family, guide, still)
    record = am.Record(UNITS, 0, UNITS, 0.0, "", 0, data_fingerprint=conform(units, joint).fingerprint())
    return am.Posterior(plan, joint, guide, record, None)


def free_scale(scale):
    """The number of a normal family that stands for a scale."""
    return 10 * math.atanh((math.log(scale) + 5) / 10) - 10 * math.atanh(0.5)


def exact_groups(scale=1.0):
    """q(level) is the posterior, `scale` times as wide."""
    data = groups_data()
    posterior = untrained(groups, data)
    precision = 1 / 4 + UNITS / (1.5**2 + 0.8**2)
    mean = np.sum(data["x"], dtype=np.float64) / (1.5**2 + 0.8**2) / precision
    frame = posterior.guide.shared.whitening.value
    center, spread = float(frame["center"][0]), float(frame["scale"][0])
    offset = jnp.array([(mean - center) / spread, free_scale(scale / math.sqrt(precision) / spread)])
    return eqx.tree_at(lambda p: p.guide.shared.family.parameters.offset, posterior, offset)


def wide():
    """Every local's sd 4.4 times too large: KL 7.7 nats."""
    offset = jnp.array([0.0, free_scale(4.4)])
    return eqx.tree_at(lambda p: p.guide.local.family.parameters.offset, exact_groups(), offset)


def fitted(model, data, objective=None, **recipes):
    plan = am.amortize(model, data, plate="unit", **recipes)
    objective = am.ELBO() if objective is None else objective
    run = am.Run(num_steps=STEPS, progress=False)
    return am.fit(plan, data, key=jax.random.key(0), objective=objective, run=run)


def missing_jacobian():
    """Trained on the density without it, asked as the model's own."""
    lost = fitted(functools.partial(counts, jacobian=False), counts_data())
    own = untrained(counts, counts_data())
    return am.Posterior(own.plan, own.joint, lost.guide, own.record, None)


class SameKey(AbstractObjective):
    """Its objective with the same noise at every step."""

    inner: AbstractObjective

    needs_all_units: ClassVar[bool] = False
    trains_all: ClassVar[bool] = True
    teaches_labels: ClassVar[bool] = False

    def check(self, structure):
        """As the objective does."""
        self.inner.check(structure)

    @property
    def bias(self):
        """Not said: this is the fault."""
        return ""

    def is_settled(self, step):
        """As of the objective."""
        return self.inner.is_settled(step)

    def __call__(self, key, guide, joint, minibatch):
        """The objective at one key."""
        return self.inner(jax.random.key(0), guide, joint, minibatch)


FAULTS = {
    "guide far too wide": (wide, groups_data),
    "missing Jacobian": (missing_jacobian, counts_data),
    "half the posterior lost": (lambda: fitted(sides, sides_data()), sides_data),
    "diagonal guide, correlated posterior": (lambda: fitted(linear, linear_data(), family=am.diagonal()), linear_data),
    "KL weight left at 0.5": (lambda: fitted(linear, linear_data(), am.ELBO(kl_weight=0.5)), linear_data),
    "no N/B scale: q(v) 10 times too wide": (lambda: exact_groups(10.0), groups_data),
    "the global scaled too: q(v) 10 times too narrow": (lambda: exact_groups(0.1), groups_data),
    "same key every step": (lambda: fitted(linear, linear_data(), SameKey(am.ELBO())), linear_data),
}
EXACT = {
    "Gaussian hierarchy with a global": (exact_groups, groups_data),
    "Gaussian tree, ragged": (lambda: untrained(schools, schools_data()), schools_data),
    "mixture, classes summed": (lambda: untrained(classes, classes_data()), classes_data),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One report: its verdict, reasons by code, and the figures that diagnostics are known by."""

    name: str
    verdict: str
    levels: dict[str, str]
    figures: dict[str, str]


def row(name, report):
    levels = {}
    for reason in report.reasons:
        levels[reason.code] = max(levels.get(reason.code, "WARN"), reason.level, key=["WARN", "FAIL"].index)
    units, numbers = report.units, report.numbers
    gap = numbers["iw_elbo_per_unit"] - numbers["elbo_per_unit"]
    figures = {
        "k-hat, median": f"{np.median(units['pareto_k']):.2f}",
        "above limit": f"{np.mean(units['pareto_k'] > numbers['k_limit']):.0%}",
        "ESS/S": f"{np.median(units['ess']) / numbers['num_samples']:.3f}",
        "90% coverage": f"{numbers['coverage_90']:.3f}" if "coverage_90" in numbers else "–",
        "SBC p": f"{numbers.get('sbc_p_smallest', np.nan):.1g}",
        "TARP p": f"{numbers.get('tarp_p_smallest', np.nan):.1g}",
        "IW-ELBO − ELBO": f"{gap:.3f}",
        "globals' k-hat": f"{numbers['globals_pareto_k']:.2f}" if "globals_pareto_k" in numbers else "–",
    }
    return Row(name, report.verdict, levels, figures)


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def show(rows):
    """Figures, then reasons: one row for each fault."""
    codes = sorted({code for each in rows for code in each.levels})
    table(["planted fault", *rows[0].figures], [[r.name, *r.figures.values()] for r in rows])
    found = [[r.name, r.verdict, *(r.levels.get(code, "") for code in codes)] for r in rows]
    table(["planted fault", "verdict", *codes], found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=7, help="checks of each exact posterior")
    parser.add_argument("--only", default="", help="faults whose name has this in it; exact: none")
    options = parser.parse_args()
    rows = []
    for name, (made, data) in FAULTS.items():
        if options.only in name:
            start = time.perf_counter()
            rows.append(row(name, made().check(data(), key=jax.random.key(1))))
            print(f"{name}: {rows[-1].verdict} {rows[-1].levels} ({time.perf_counter() - start:.0f} s)", flush=True)
    if rows:
        show(rows)
    if options.only not in ("", "exact"):
        return
    alarms = {}
    for name, (made, data) in EXACT.items():
        posterior = made()
        reports = [posterior.check(data(), key=jax.random.key(100 + i)) for i in range(options.keys)]
        alarms[name] = [f"{x.level} {x.code}" for report in reports for x in report.reasons]
    table(
        ["exact posterior", "checks", "alarms"],
        [[n, str(options.keys), ", ".join(a) or "none"] for n, a in alarms.items()],
    )


if __name__ == "__main__":
    main()
