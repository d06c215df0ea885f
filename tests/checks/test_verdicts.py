"""What do a unit's numbers say, and what is to be done? And do the tables that leave hold what the report holds?"""

import jax
import numpy as np
import pytest
import xarray

import amortax as am
from amortax.checks.report import Report
from amortax.checks.verdicts import unit_reasons, unit_verdicts
from amortax.psis import FLAT_K, k_error, pareto_k

LIMIT, DRAWS = 0.67, 1000


def judged(*, k, ess=300.0, worst=None, error=0.0, elbo=-3.0, evidence=-2.9):
    numbers = {"pareto_k": k, "pareto_k_worst": k if worst is None else worst, "pareto_k_se": error, "ess": ess}
    numbers |= {"ess_worst": ess, "elbo": elbo, "log_evidence": evidence}
    found = unit_verdicts({name: np.array([x], float) for name, x in numbers.items()}, LIMIT, DRAWS)
    return tuple(str(found[name][0]) for name in ("verdict", "reason", "next_step"))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"k": 0.3}, ("PASS", "", "none")),
        ({"k": 0.9, "ess": 995.0}, ("PASS", "", "none")),
        ({"k": 0.3, "ess": 50.0}, ("WARN", "low-ess", "reweight")),
        ({"k": 0.9}, ("FAIL", "pareto-k", "refine")),
        ({"k": 0.5, "worst": 0.8}, ("WARN", "pareto-k", "refine")),
        ({"k": 0.75, "error": 0.1}, ("WARN", "pareto-k", "refine")),
        ({"k": 0.65, "error": 0.1}, ("PASS", "", "none")),
        ({"k": np.inf}, ("FAIL", "pareto-k", "refine")),
        ({"k": np.nan, "elbo": np.nan}, ("FAIL", "non-finite", "refit")),
        ({"k": np.nan, "ess": np.nan, "elbo": -np.inf, "evidence": -np.inf}, ("FAIL", "out-of-support", "refit")),
    ],
)
def test_every_unit_has_a_verdict_a_reason_and_a_next_step(numbers, said):
    assert judged(**numbers) == said


def test_that_all_units_fail_is_said_first():
    units = {name: np.array([x] * 3) for name, x in (("verdict", "FAIL"), ("reason", "pareto-k"))}
    first, second = unit_reasons(units, "county", LIMIT)
    assert (first.code, first.level) == ("all-fail", "FAIL")
    assert "All 3 units (county) fail" in first.text
    assert second.code == "pareto-k"


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_error_of_a_k_hat_is_its_spread_over_draws(k):
    uniform = np.random.default_rng(0).uniform(size=(2000, DRAWS))
    weights = np.log1p(np.expm1(-k * np.log(uniform)) / k).astype(np.float32)
    found = np.asarray(jax.jit(jax.vmap(pareto_k))(weights))
    said, spread = k_error(np.array([found.mean()]), DRAWS)[0], found.std(ddof=1)
    print(f"k {k}: k-hat {found.mean():.3f}, spread {spread:.4f}, said {said:.4f}")
    assert abs(said / spread - 1) <= 5 / np.sqrt(2 * 1999) + 0.1  # asymptotic: the tail has 95 values
    medians = np.median(found.reshape(250, 8), axis=1)
    assert abs(k_error(np.array([k]), DRAWS, 8)[0] / medians.std(ddof=1) - 1) <= 5 / np.sqrt(2 * 249) + 0.1


def test_a_k_hat_without_a_fit_has_no_error():
    assert k_error(np.array([FLAT_K, np.inf, np.nan]), DRAWS).tolist() == [0.0, 0.0, 0.0]


@pytest.fixture
def report():
    units = {
        "county": np.array(["A", "B"]),
        "verdict": np.array(["PASS", "WARN"]),
        "reason": np.array(["", "input-shift"]),
        "next_step": np.array(["none", "refine"]),
        "pareto_k": np.array([0.1, np.nan]),
        "unseen": np.array([False, True]),
    }
    return Report("WARN", (), units, {"k_limit": LIMIT}, "county", {})


def test_tables_hold_every_column_and_type(report):
    table, frame = report.to_arrow(), report.to_pandas()
    assert table.column_names == list(report.units) == list(frame.columns)
    assert table["verdict"].to_pylist() == frame["verdict"].tolist() == ["PASS", "WARN"]
    assert str(table.schema.field("pareto_k").type) == "double"
    assert str(table.schema.field("unseen").type) == "bool"
    assert np.isnan(frame["pareto_k"][1])


def test_the_report_stands_beside_the_draws_by_label(report):
    draws = xarray.Dataset({"z": (("sample", "county"), np.zeros((3, 2)))}, coords={"county": ["B", "A"]})
    tree = am.to_datatree(draws, report)
    assert set(tree.children) == {"posterior", "check"}
    assert tree["check"]["next_step"].sel(county="B").item() == "refine"
    assert tree["check"].attrs == {"verdict": "WARN", "k_limit": LIMIT}
    assert set(am.to_datatree(draws).children) == {"posterior"}
