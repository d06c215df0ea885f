"""What of a posterior stands in its file, and how is it put back? Description as JSON, numbers as named arrays."""

from __future__ import annotations

import os
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._errors import ArtifactError, check_entries
from ._types import PyTree
from .artifact import read_artifact, write_artifact
from .checks.shift import PREFIX, Reference, reference_from
from .data import TableSchema
from .guide import Guide
from .joint.densities import densities
from .joint.joint import Joint
from .plan import Plan
from .train.record import Record


def write_posterior(
    path: str | os.PathLike[str],
    plan: Plan,
    pair: tuple[Joint, Guide],
    record: Record,
    schema: TableSchema | None,
    reference: Reference | None,
) -> None:
    """Everything but the model, in one file."""
    content = {
        "plan": plan.to_json(),
        "record": record.to_json(),
        "schema": None if schema is None else schema.to_json(),
        "densities": densities(pair[0]),
    }
    arrays = dict(_named(_arrays(*pair)))
    write_artifact(path, content, arrays | ({} if reference is None else reference.to_arrays()))


def read_posterior(
    path: str | os.PathLike[str], model: Callable
) -> tuple[Plan, Record, TableSchema | None, dict[str, np.ndarray], dict[str, float]]:
    """What was written: plan, record, schema, named arrays and densities; `model` is put into the plan and not run.

    **Raises** `ArtifactError` naming the file, if any bit or entry of it is wrong.
    """
    content, arrays = read_artifact(path)
    try:
        check_entries("posterior", content, ("plan", "record", "schema"), ("densities",))
        plan, record = Plan.from_json(content["plan"], model), Record.from_json(content["record"])
        schema = None if content["schema"] is None else TableSchema.from_json(content["schema"])
    except ArtifactError as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(
            f"{os.fspath(path)}: the description of the posterior can't be read: {reason}; another version wrote it"
        ) from error
    return plan, record, schema, arrays, dict(content.get("densities", {}))


def _arrays(joint: Joint, guide: Guide) -> PyTree:
    return (joint.params, eqx.filter(guide, lambda x: hasattr(x, "shape")))


def _named(tree: PyTree) -> list[tuple[str, np.ndarray]]:
    return [(jax.tree_util.keystr(path), np.asarray(x)) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def filled(
    joint: Joint, guide: Guide, arrays: dict[str, np.ndarray], path: str
) -> tuple[Joint, Guide, Reference | None]:
    """The skeleton with the stored arrays in their places, and what the training units were like, if that is stored.

    **Raises** `ArtifactError` where arrays are missing, unknown, or of another shape or type.
    """
    usual = {name: x for name, x in arrays.items() if name.startswith(PREFIX)}
    arrays = {name: x for name, x in arrays.items() if name not in usual}
    wanted = _arrays(joint, guide)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(wanted)
    names = [jax.tree_util.keystr(where) for where, _ in leaves]
    if set(names) != set(arrays):
        raise ArtifactError(
            f"{path}: arrays {sorted(set(names) ^ set(arrays))[:3]} are not in both the file and the model; "
            "give the model that was trained"
        )
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if tuple(leaf.shape) != arrays[name].shape:
            raise ArtifactError(
                f"{path}: array {name} has shape {arrays[name].shape}, the model needs {tuple(leaf.shape)}"
            )
        if leaf.dtype != arrays[name].dtype:
            raise ArtifactError(f"{path}: array {name} is of {arrays[name].dtype}, the model needs {leaf.dtype}")
    params, placed = jax.tree_util.tree_unflatten(treedef, [jnp.asarray(arrays[name]) for name in names])
    static = eqx.filter(guide, lambda x: hasattr(x, "shape"), inverse=True)
    return Joint(joint.model, joint.structure, params), eqx.combine(placed, static), _reference(usual, guide, path)


def _reference(arrays: dict[str, np.ndarray], guide: Guide, path: str) -> Reference | None:
    try:
        return reference_from(arrays, guide)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; give the model that was trained") from error
