"""On which posteriors is the repair of globals tried? Models with data, how they are trained, and what is known.

References are exact (`radon_exact`, `marginal`, and the conditionals of locals given those globals) or published draws.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam

import amortax as am
from amortax.models import item_response, radon, stochastic_volatility

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
sys.path[:0] = [str(ROOT / "tests/statistical")]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with data, how it is trained, and what is known: name -> (means, sds), each of the values' shape."""

    model: Callable
    units: am.Units
    plate: str
    reference: Callable[[], dict[str, tuple[np.ndarray, np.ndarray]]]
    values: Callable[[dict], dict]  # of the model's sites, under the names of the reference
    plan: dict = dataclasses.field(default_factory=dict)
    fit: dict = dataclasses.field(default_factory=dict)
    decentred: dict = dataclasses.field(default_factory=dict)  # sites that NUTS has without their location and scale


def case_radon():
    units = am.from_table(
        radon.table(), unit="county", columns=["floor", "log_radon"], unit_columns=["log_uranium", "floor_by_county"]
    )

    def reference():
        exact = radon.exact_posterior(radon.counties())
        found = {name: (np.array(mean), np.array(sd)) for name, (mean, sd) in exact.globals.items()}
        return found | {"county_effect": (exact.train.mean, exact.train.sd)}

    return Case(radon.model, units, "county", reference, lambda v: v, fit={"num_steps": 1000})


def case_sleepstudy():
    import mixed_targets
    from marginal import weigh

    target = mixed_targets.sleepstudy(SHARED)
    z, x, y = (np.asarray(target.units.arrays[name], np.float64) for name in ("z", "x", "y"))

    def reference():
        exact = weigh(target.log_density, target.start, size=2**15)
        found = exact.moments(target.quantities)
        beta, sd, r, sigma = (
            exact.draws[:, :2],
            np.exp(exact.draws[:, 2:4]),
            np.tanh(exact.draws[:, 4]),
            exact.draws[:, 5],
        )
        factor = np.zeros((len(r), 2, 2))
        factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = sd[:, 0], r * sd[:, 1], np.sqrt(1 - r**2) * sd[:, 1]
        rows = z[None] @ factor[:, None]  # (S, group, row, 2)
        precision = np.eye(2) + np.swapaxes(rows, 2, 3) @ rows / np.exp(2 * sigma)[:, None, None, None]
        covariance = np.linalg.inv(precision)
        away = (y[None] - np.einsum("ijk,sk->sij", x, beta)) / np.exp(2 * sigma)[:, None, None]
        mean = np.einsum("sikl,sijl,sij->sik", covariance, rows, away)
        return arrays(found) | {"u": mixed(exact.weights, mean, np.einsum("sikk->sik", covariance))}

    return Case(
        target.model,
        target.units,
        "group",
        reference,
        functools.partial(with_quantities, target),
        plan={"shared_family": am.coupling(4)},
        fit={"num_steps": 2000},
    )


def case_seeds():
    import mixed_targets
    from marginal import LOG_NODES, NODES, weigh

    target = mixed_targets.seeds(SHARED)
    data = target.units.arrays
    x, y, trials = np.asarray(data["x"])[:, 0], np.asarray(data["y"], float), np.asarray(data["trials"], float)

    def reference():
        exact = weigh(target.log_density, target.start, size=2**14)
        logits = (exact.draws[:, :4] @ x.T)[..., None] + np.exp(exact.draws[:, 4])[:, None, None] * NODES
        each = y * logits - trials * np.logaddexp(0, logits) + LOG_NODES
        share = np.exp(each - each.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        mean = share @ NODES
        return arrays(exact.moments(target.quantities)) | {"u": mixed(exact.weights, mean, share @ NODES**2 - mean**2)}

    return Case(
        target.model,
        target.units,
        "group",
        reference,
        functools.partial(with_quantities, target),
        plan={"shared_family": am.coupling(4)},
        fit={"num_steps": 2000},
    )


def case_item_response_1pl():
    folder = SHARED / "data/inference_gym/item_response_1pl"
    data, known = np.load(folder / "data.npz"), np.load(folder / "reference.npz")
    table = {
        "person": data["student_ids"],
        "item": data["question_ids"].astype(np.int32),
        "correct": data["correct"].astype(np.int32),
    }
    units = am.from_table(table, unit="person", columns=["item", "correct"])
    units = units.take(np.argsort(units.labels))
    priors = item_response.Priors(ability_scale=1.0, difficulty_mean=dist.Normal(-0.75, 1.0), difficulty_scale=1.0)
    model = functools.partial(item_response.one_parameter, num_items=100, priors=priors)
    names = ("question_difficulty", "centered_student_ability")

    def values(v):
        return {
            "question_difficulty": v["difficulty"] - v["difficulty_mean"][:, None],
            "centered_student_ability": v["ability"],
        }

    def reference():
        return {n: (known[f"mean__{n}"], known[f"sd__{n}"]) for n in names}

    return Case(model, units, "person", reference, values, fit={"num_steps": 4000})


def case_irt_2pl():
    from references import read_reference
    from test_item_response import NAMES

    folder = SHARED / "data/stat_comp/irt_2pl"
    correct = np.array(json.loads((folder / "data.json").read_text())["y"], np.int32).T
    units = am.units({"correct": correct}, name="student")

    def values(v):
        return {theirs: v[ours] for theirs, ours in NAMES.items()}

    return Case(
        item_response.two_parameters,
        units,
        "person",
        lambda: arrays(read_reference(folder / "reference.csv")),
        values,
        plan={"shared_family": am.blocks(curved=True)},
        fit={"num_steps": 2000, "objective": am.IWELBO(1, num_shared_draws=16, weigh_shared=True)},
    )


def case_stochastic_volatility():
    folder = SHARED / "data/inference_gym/stochastic_volatility_sp500_small"
    returns = np.load(folder / "data.npz")["centered_returns"].astype(np.float32)[None]
    known = np.load(folder / "reference.npz")
    names = ("log_volatility", "mean_log_volatility", "white_noise_shock_scale", "persistence_of_volatility")
    return Case(
        stochastic_volatility.one,
        am.units({"returns": returns}, name="series"),
        "series",
        lambda: {n: (known[f"mean__{n}"], known[f"sd__{n}"]) for n in names},
        lambda v: v,
        plan={"shared_family": am.coupling(4)},
        fit={"num_steps": 3000, "objective": am.ELBO(num_particles=16)},
    )


def case_eight_schools():
    from references import read_reference
    from targets import eight_schools

    y, sigma = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    units = am.units({"y": y, "sigma": sigma}, name="school")
    path = SHARED / "data/posteriordb/eight_schools-eight_schools_noncentered/reference_summary.csv"

    def reference():
        known = read_reference(path)
        return arrays({name: x for name, x in known.items() if name in ("mu", "tau") or name.startswith("theta[")})

    decentred = {"theta": LocScaleReparam(0.0)}
    return Case(eight_schools, units, "school", reference, lambda v: v, fit={"num_steps": 2000}, decentred=decentred)


def arrays(known):
    """name[i] -> (mean, sd) as name -> (means, sds), indices in order."""
    found: dict[str, list] = {}
    for name, pair in known.items():
        found.setdefault(name.partition("[")[0], []).append(pair)
    return {n: tuple(np.array(x if f"{n}[1]" in known else x[0]).T) for n, x in found.items()}


def mixed(weights, mean, variance):
    """Mean and sd of mixtures over weighted draws."""
    total = np.einsum("s,s...->...", weights, mean)
    return total, np.sqrt(np.einsum("s,s...->...", weights, variance + (mean - total) ** 2))


def with_quantities(target, v):
    """The named globals of a mixed model, and the spherical effects."""
    import xarray

    dims = {n: ("sample", *(f"{n}{i}" for i in range(x.ndim - 1))) for n, x in v.items()}
    draws = target.of_draws(xarray.Dataset({n: (dims[n], x) for n, x in v.items()}))
    return {str(n): draws[n].values for n in draws.data_vars}


CASES = {name.removeprefix("case_"): make for name, make in dict(globals()).items() if name.startswith("case_")}
