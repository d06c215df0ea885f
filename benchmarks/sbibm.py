"""How near are posteriors of sbibm's tasks to their references? C2ST by 10,000 simulated data sets.

    python benchmarks/sbibm.py --tasks two_moons slcp --methods both forward npe --classify 10

Every method learns from the same 10,000 (latents, data) pairs: `forward` by forward KL alone (plain neural posterior
estimation), `both` from there on with the likelihood, as `sbibm_tasks.py` says, `npe` is that of sbi (`sbibm_npe.py`).
All draws are plain draws of q, unweighted.

*C2ST* is the accuracy of sbibm's classifier (0.5: it can't tell draws from the reference; 1: it always can), as
`sbibm/metrics/c2st.py` defines it: float32, both samples standardised by the reference, two hidden layers of 10 times
the dimension, Adam until it converges, mean accuracy of five shuffled folds, seed 1. It needs scikit-learn and, in ten
dimensions, minutes for each of the `--classify` observations.

*Best* is the accuracy that the best of all classifiers has, which says "reference" where p(θ | x) > q(θ | x). Both
densities are known but for the evidence, which is that of the best logistic regression on their ratio (Bennett 1976).
No classifier's accuracy exceeds it in the mean, so that a best accuracy within a figure settles it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np
import xarray
from numpyro.infer.util import log_density
from sbibm_tasks import TASKS, Task, load
from scipy.optimize import brentq
from scipy.special import expit

import amortax as am

SIMULATIONS, DRAWS, PART = 10_000, 10_000, 500


def c2st(reference: np.ndarray, draws: np.ndarray) -> float:
    """Cross-validated accuracy of sbibm's classifier between two samples."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    reference, draws = (np.asarray(x, np.float32) for x in (reference, draws))
    center, scale = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    both = np.concatenate([(reference - center) / scale, (draws - center) / scale])
    target = np.concatenate([np.zeros(len(reference)), np.ones(len(draws))])
    width = 10 * reference.shape[1]
    classifier = MLPClassifier((width, width), activation="relu", solver="adam", max_iter=10_000, random_state=1)
    folds = KFold(n_splits=5, shuffle=True, random_state=1)
    return float(np.mean(cross_val_score(classifier, both, target, cv=folds, scoring="accuracy")))


def best_accuracy(reference: np.ndarray, draws: np.ndarray) -> float:
    """Accuracy of the best classifier, from log p(θ, x) - log q(θ | x) at draws of p and at as many of q."""
    middle = float(np.median(reference))

    def excess(offset: float) -> float:
        return float(np.sum(expit(reference - offset)) + np.sum(expit(draws - offset)) - len(reference))

    evidence = brentq(excess, middle - 100.0, middle + 100.0)
    return 0.5 * float(np.mean(reference > evidence) + np.mean(draws <= evidence))


def best_accuracies(posterior: am.Posterior, task: Task, observations: Any, references: Any, draws: Any) -> np.ndarray:
    """`best_accuracy` for every observation; `draws` of q as `posterior.sample` gives them."""
    data, density = {"x": observations}, jax.jit(jax.vmap(lambda x, theta: _log_joint(task, x, theta), (None, 0)))
    known = draws.copy(deep=True)
    known["theta"] = (draws["theta"].dims, np.swapaxes(references, 0, 1).astype(np.float32))
    ratios = []
    for values in (known, draws):
        log_q = np.asarray(posterior.log_prob(values, data).unit, np.float64)
        theta = values["theta"].values
        log_p = [np.asarray(density(x, theta[:, i]), np.float64) for i, x in enumerate(observations)]
        ratios.append(np.stack(log_p) - log_q.T)
    return np.array([best_accuracy(*pair) for pair in zip(*ratios, strict=True)])


def _log_joint(task: Task, x: Any, theta: Any) -> Any:
    return log_density(task.model, (x,), {}, {"theta": theta})[0]


def simulated(name: str) -> tuple[Any, tuple[dict, Any]]:
    """The plan of a task, and its pairs."""
    task, _, _ = load(name)
    plan = am.amortize(task.model, {"x": np.zeros((2, *task.shape), np.float32)}, plate=None, family=task.family)
    return plan, am.simulate(plan, SIMULATIONS, key=jax.random.key(1))


def learn(name: str, method: str) -> tuple[am.Posterior, float]:
    """The posterior of a task from its pairs, and the seconds of training."""
    plan, pairs = simulated(name)
    posterior, seconds = plan, 0.0
    for number, stage in enumerate(TASKS[name].stages[: 2 if method == "both" else 1]):
        posterior = am.fit(posterior, pairs, key=jax.random.key(2 + number), **stage)
        seconds += posterior.record.seconds
    return posterior, seconds


def drawn(posterior: am.Posterior, observations: np.ndarray) -> Any:
    """`DRAWS` draws for every observation, in parts: a mixture of flows takes a copy of a member's weights per draw."""
    keys = jax.random.split(jax.random.key(3), DRAWS // PART)
    parts = [posterior.sample({"x": observations}, num_samples=PART, key=key) for key in keys]
    return xarray.concat(parts, "sample").assign_coords(sample=np.arange(DRAWS))


def answer(name: str, method: str) -> tuple[np.ndarray, float, np.ndarray | None]:
    """(draws (observations, draws, d), seconds of training, best accuracies where the densities are at hand)."""
    task, observations, references = load(name)
    if method == "npe":
        from sbibm_npe import draws_of_npe

        pairs = simulated(name)[1]
        return *draws_of_npe(name, pairs, observations, DRAWS), None
    posterior, seconds = learn(name, method)
    draws = drawn(posterior, observations)
    best = best_accuracies(posterior, task, observations, references[:, :DRAWS], draws)
    return np.swapaxes(draws["theta"].values, 0, 1), seconds, best


def main() -> None:
    """Prints one row for each task and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=["both", "forward"], choices=["both", "forward", "npe"])
    parser.add_argument("--classify", type=int, default=10, help="observations for C2ST; none without scikit-learn")
    given = parser.parse_args()
    for name in given.tasks:
        task, _, references = load(name)
        for method in given.methods:
            draws, seconds, best = answer(name, method)
            row = f"{name} {method}: trained {seconds:.0f} s"
            if best is not None:
                row += f", best accuracy {best.mean():.3f} (largest {best.max():.3f})"
            print(f"{row}; published NPE with 100,000: {task.published}", flush=True)
            start, found = time.perf_counter(), []
            for number in range(given.classify):
                found.append(c2st(references[number], draws[number]))
                print(f"    observation {number + 1}: C2ST {found[-1]:.3f}", flush=True)
            if found:
                took = time.perf_counter() - start
                print(f"  C2ST {np.mean(found):.3f} over {len(found)} observations, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
