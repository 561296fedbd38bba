"""ONNX files with planned channels at zero: what the file without them has to compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphprune.formats.onnx_files import write
from graphprune.formats.runnable import runnable
from graphprune.formats.validity import invalidity
from graphprune.passes.channels.exactness import exact_part, say_inexact
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import ModelLoadError
from graphprune.passes.onnx.cut import mask_groups
from graphprune.passes.onnx.model import free_sizes, load_model
from graphprune.passes.onnx.slim import planned_groups, trace_planned
from graphprune.verification.proof import Proof, Verdict, run_reference
from graphprune.verification.verify import tolerance_of

__all__ = ["Masked", "Work", "mask_file"]


@dataclass(frozen=True)
class Work:
    """What the proofs of one slim file have in common.

    Attributes:
        source: the file that it is made from.
        folder: for files that are needed on the way.
        inputs: arrays by input name to compare with, besides random ones.
        shapes: sizes of inputs that the file leaves free (beyond the batch).
        tolerance: largest difference; None: what the file's number format leaves.
    """

    source: Path
    folder: Path
    inputs: Mapping[str, np.ndarray] | None
    shapes: Mapping[str, tuple[int, ...]] | None
    tolerance: float | None

    def reference(self, path: Path) -> tuple[Proof, tuple[str, ...]]:
        """What a file gives, or the part of it that onnxruntime can run, and what is said of the rest."""
        name = self.source.name
        try:
            return run_reference(path, self.inputs, self.shapes, name), ()
        except ModelLoadError:
            part = runnable(path, name, self.folder)
            return run_reference(part.path, self.inputs, self.shapes, name), part.notes

    def limit(self, model: ir.Model, proof: Proof, is_part: bool) -> float:
        """The largest difference that is tolerated."""
        return tolerance_of(load_model(proof.path) if is_part else model) if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Masked:
    """A file with planned channels at zero.

    Attributes:
        path: where it lies.
        inexact: how many of the planned groups change what stays, and by which operator; "" where none does. Then the
            file computes what the slim one has to.
        inexact_groups: their number.
        exact: the plan of the others, of which the same can be asked; None where there are none.
    """

    path: Path
    inexact: str
    inexact_groups: int
    exact: PruningPlan | None

    def moved(self, distance: Verdict, part: Verdict | None) -> Verdict:
        """What is known of the slim file where groups went that are not exact.

        Args:
            distance: how far it is from this one.
            part: what was found where the exact groups alone went, if there are any.
        """
        moved = (
            "how far that moves the outputs cannot be said"
            if np.isnan(distance.error)
            else f"the outputs move by up to {distance.error:.2g} of their scale from those with zeros in their place"
        )
        rest = "nothing was compared" if part is None else "compared is the file without the other groups alone"
        before = Verdict(0.0) if part is None else part
        return Verdict(before.error, (f"{self.inexact}: {moved}; {rest}", *distance.notes, *before.notes))


def mask_file(source: Path, plan: PruningPlan, shapes: Mapping[str, tuple[int, ...]] | None, path: Path) -> Masked:
    """Write a file as `path` with the planned channels set to zero.

    Args:
        source: the file.
        plan: what is set to zero.
        shapes: sizes of inputs that the file leaves free (beyond the batch).
        path: the file to write; what helps to judge whether the source is valid is written beside it.

    Raises:
        ModelLoadError: the file cannot be read.
        PlanError: the plan does not fit it.
    """
    model = load_model(source)
    if invalidity(source):  # onnxruntime runs some such files, and refuses others
        runnable(source, source.name, path.parent)
    graph = trace_planned(model, plan, free_sizes(model, shapes))
    removed = planned_groups(graph, plan)
    part = exact_part(graph, removed)
    inexact, number = say_inexact(graph, removed), int((removed & ~part).sum())
    exact = graph.plan(part) if inexact and part.any() else None
    mask_groups(graph, removed)
    write(graph.front_end.model, path)
    return Masked(path, inexact, number, exact)
