"""A pruning plan: which channels go, as plain data that outlives the run."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels.labels import Mask
from graphprune.passes.errors import PlanError

SCHEMA = 1
"""Version of plan.json: the field `schema`.

A further field that a reader can do without changes nothing. For anything else: raise the number by one; let
`PruningPlan.from_dict` read both numbers, since plans are kept with models for years; keep a plan of the old number
under `tests/old_files/`, in the folder of the version that wrote it, and cut by it in `tests/test_old_files.py`; say in
docs/stability.md from which version on the new one is written.
"""


@dataclass(frozen=True)
class PruningPlan:
    """Indices to remove from parameters and buffers, along each of their dimensions.

    Attributes:
        removed: parameter or buffer name -> dimension -> sorted indices.
        shapes: sizes of those tensors before the cut; a plan fits a model when these agree.
        inputs: shape and dtype of each input of the model, so that a slim model can be checked.
        options: how the channels were analyzed, where it was not the default way.
        meta: what made the plan (budget, importance, seed, ...); informative only.
    """

    removed: Mapping[str, Mapping[int, tuple[int, ...]]]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, bool] = field(default_factory=dict)

    def kept(self, name: str, dim: int, size: int) -> Mask:
        """Which of the `size` indices along a dimension stay.

        Raises:
            PlanError: an index is out of range.
        """
        mask = np.ones(size, dtype=np.bool_)
        gone = self.gone.get((name, dim))
        if gone is None:
            return mask
        if gone.size and (gone.min() < 0 or gone.max() >= size):
            worst = int(gone.min() if gone.min() < 0 else gone.max())
            raise PlanError(
                f"plan removes index {worst} of {name} along dimension {dim}, which has {size}: "
                "make the plan anew for this model"
            )
        mask[gone] = False
        return mask

    @cached_property
    def gone(self) -> dict[tuple[str, int], NDArray[np.int64]]:
        """(name, dimension) -> indices that are removed, as arrays."""
        return {
            (name, dim): np.asarray(indices, dtype=np.int64)
            for name, dims in self.removed.items()
            for dim, indices in dims.items()
        }

    def renamed(self, names: Mapping[str, str]) -> "PruningPlan":
        """The plan for a model in which parameters have other names: those of `names` become what they stand for."""
        return replace(
            self,
            removed={names.get(name, name): dims for name, dims in self.removed.items()},
            shapes={names.get(name, name): shape for name, shape in self.shapes.items()},
        )

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise PlanError unless every tensor the plan names is there with the size it had, and every index in it."""
        for name in (*self.shapes, *self.removed):
            if name not in shapes:
                raise PlanError(f"plan names {name}, which the model does not have: make the plan for this model")
        for name, shape in self.shapes.items():
            if tuple(shapes[name]) != tuple(shape):
                raise PlanError(
                    f"plan was made for {name} of shape {tuple(shape)}, the model has {tuple(shapes[name])}"
                )
        for name, dims in self.removed.items():
            for dim in dims:
                if not 0 <= dim < len(shapes[name]):
                    raise PlanError(f"plan cuts {name} along dimension {dim}: it has only {len(shapes[name])}")
                self.kept(name, dim, shapes[name][dim])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        removed = {name: {str(d): list(ids) for d, ids in dims.items()} for name, dims in self.removed.items()}
        return {
            "schema": SCHEMA,
            "removed": removed,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "inputs": [dict(item) for item in self.inputs],
            "meta": dict(self.meta),
            "options": dict(self.options),
        }

    @classmethod
    def from_dict(cls, data: Any) -> "PruningPlan":
        """The inverse of `to_dict`.

        Raises:
            PlanError: the data is no plan, or of a later schema.
        """
        if not isinstance(data, dict) or "removed" not in data:
            raise PlanError("this is no pruning plan: it has no field 'removed'")
        if data.get("schema") != SCHEMA:
            raise PlanError(f"plan has schema {data.get('schema')!r}, this version reads {SCHEMA}")
        try:
            removed = {
                str(name): {int(dim): tuple(sorted({int(i) for i in ids})) for dim, ids in dims.items()}
                for name, dims in data["removed"].items()
            }
            shapes = {str(name): tuple(int(n) for n in shape) for name, shape in data.get("shapes", {}).items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"plan is malformed: {error}") from error
        return cls(removed, shapes, tuple(data.get("inputs", ())), data.get("meta", {}), data.get("options", {}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, by way of a temporary name."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.part")
        try:
            temporary.write_text(json.dumps(self.to_dict(), separators=(",", ":")) + "\n")
            temporary.replace(target)
        except OSError:  # a full disk
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PruningPlan":
        """Read a plan.

        Raises:
            PlanError: the file is missing or is no plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except OSError as error:
            raise PlanError(f"cannot read plan {path}: {error.strerror}") from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise PlanError(f"{path} is not a JSON plan: {error}") from error
        return cls.from_dict(data)
