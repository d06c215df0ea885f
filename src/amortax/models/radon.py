"""Radon in the houses of Minnesota's counties: a hierarchy with contextual effects, its data, and its known answer.

For house k of county c,

    log_radon_ck ~ Normal(w1 log_uranium_c + w2 floor_ck + w3 floor_by_county_c + effect_c, s_house)
    effect_c ~ Normal(mu, s_county),    mu, w1, w2, w3 ~ Normal(0, 1),    s_county, s_house ~ HalfNormal(1)

The county is the unit. The data and the reference moments (Stan, 20,000 draws) come with the package;
`radon_data/ORIGIN.md` tells from where. Given the two scales everything is Gaussian: `exact_posterior` has the answer.

Gelman and Hill (2007), chapters 12 and 16; Sountsov, Radul et al., Inference Gym (2020), `radon_contextual_effects`.
"""

from __future__ import annotations

import csv
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from amortax._errors import DataError
from amortax.models.radon_exact import exact_posterior

__all__ = ["counties", "exact_posterior", "model", "reference", "table"]


def model(
    log_uranium: Float[Array, " county"],
    floor_by_county: Float[Array, " county"],
    floor: Num[Array, "county house"],
    log_radon: Float[ArrayLike, "county house"] | None = None,
) -> None:
    """The NumPyro model; amortize it over the plate "county".

    Args:
        log_uranium: log of the uranium in the county's soil, log parts per million.
        floor_by_county: mean of `floor` over the county's houses.
        floor: 0 where the house was measured in its basement, 1 on the first floor.
        log_radon: log of the radon activity, log pCi/L; None to simulate.

    """
    weight_uranium = numpyro.sample("weight_uranium", dist.Normal(0.0, 1.0))
    weight_floor = numpyro.sample("weight_floor", dist.Normal(0.0, 1.0))
    weight_floor_by_county = numpyro.sample("weight_floor_by_county", dist.Normal(0.0, 1.0))
    county_effect_mean = numpyro.sample("county_effect_mean", dist.Normal(0.0, 1.0))
    county_effect_scale = numpyro.sample("county_effect_scale", dist.HalfNormal(1.0))
    log_radon_scale = numpyro.sample("log_radon_scale", dist.HalfNormal(1.0))
    context = weight_uranium * log_uranium[:, None] + weight_floor_by_county * floor_by_county[:, None]
    with numpyro.plate("county", floor.shape[0], dim=-2):
        effect = numpyro.sample("county_effect", dist.Normal(county_effect_mean, county_effect_scale))
        with numpyro.plate("house", floor.shape[1], dim=-1):
            centre = context + weight_floor * floor + effect
            numpyro.sample("log_radon", dist.Normal(centre, log_radon_scale), obs=log_radon)


def table() -> Path:
    """Path of the CSV with one row per house: county, floor, log_radon, log_uranium, floor_by_county.

    >>> table().name
    'radon.csv'
    """
    return _file("radon.csv")


def reference() -> dict[str, tuple[float, float]]:
    """Posterior (mean, sd) of every global by its site name and of every county by `county_effect[NAME]`.

    >>> mean, sd = reference()["county_effect_mean"]
    >>> round(mean, 3), round(sd, 3)
    (1.392, 0.051)
    """
    rows = json.loads(_file("reference_halfnormal.json").read_text(encoding="utf-8"))
    return {name: (row["mean"], row["sd"]) for name, row in rows.items()}


def counties(names: Sequence[str] | None = None) -> dict[str, list]:
    """The data by county: `county` (names) and the model's four arguments, as `exact_posterior` takes them.

    Args:
        names: the counties wanted, in the order wanted; None: all 85 in alphabetical order.

    Returns:
        One list entry per county: a name, a number (`log_uranium`, `floor_by_county`), or a float64 array with one
        number per house (`floor`, `log_radon`).

    Raises:
        DataError: where a name is not one of the 85.

    >>> first = counties(["AITKIN"])
    >>> first["county"], first["floor"][0].tolist()
    (['AITKIN'], [1.0, 0.0, 0.0, 0.0])

    """
    houses: dict[str, list[dict[str, str]]] = {}
    with table().open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            houses.setdefault(row["county"], []).append(row)
    names = list(houses) if names is None else list(names)
    for name in names:
        if name not in houses:
            raise DataError(f"county {name!r} is not in radon.csv; use one of its {len(houses)}, such as 'AITKIN'")
    chosen = [houses[name] for name in names]
    return {
        "county": names,
        "log_uranium": [float(rows[0]["log_uranium"]) for rows in chosen],
        "floor_by_county": [float(rows[0]["floor_by_county"]) for rows in chosen],
        "floor": [np.array([float(row["floor"]) for row in rows]) for rows in chosen],
        "log_radon": [np.array([float(row["log_radon"]) for row in rows]) for rows in chosen],
    }


def _file(name: str) -> Path:
    return Path(str(importlib.resources.files("amortax.models").joinpath("radon_data", name)))
