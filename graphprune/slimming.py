"""ONNX in, slimmer ONNX out: channels removed, the result proven equal before it is written. Needs no torch."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphprune.files import refuse_overwrite
from graphprune.onnx_cost import onnx_cost
from graphprune.onnx_files import written
from graphprune.onnx_session import input_shapes, input_specs, one_line, open_session, random_inputs
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import VerificationError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.clean import ZeroDenormalsPass
from graphprune.passes.onnx.cut import mask_groups
from graphprune.passes.onnx.model import load_model
from graphprune.passes.onnx.slim import planned_groups, slim_model
from graphprune.verify import RTOL, require_equal
from graphprune.version import __version__

__all__ = ["SlimReport", "slim_onnx"]

#: Batch sizes that the result is checked at, where the batch is free.
_BATCHES = (1, 3)


@dataclass(frozen=True)
class SlimReport:
    """What slimming an ONNX file did.

    Attributes:
        removed_groups: coupled channel groups removed.
        removed_channels: output channels of layers that this is.
        macs_before: multiply-accumulates of one sample before.
        macs_after: the same after.
        params_before: weights before.
        params_after: weights after.
        bytes_before: size of the file before.
        bytes_after: size of the file after.
        max_error: largest difference of an output relative to its largest value, masked against slim.
        unknown_operators: operators without a rule, whose channels stay, and how often each occurs.
    """

    removed_groups: int
    removed_channels: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    max_error: float
    unknown_operators: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def slim_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    plan: PruningPlan | str | os.PathLike[str] | None = None,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float = RTOL,
    force: bool = False,
) -> SlimReport:
    """Remove channels from an ONNX file: those of a plan, or without one those that are dead.

    Both files are run in onnxruntime before anything is written. With a plan, the reference is the file
    with the planned channels set to zero.

    Args:
        source: file to read.
        target: file to write.
        plan: a plan or its file; None removes what adds nothing to the outputs.
        inputs: arrays by input name to check with; without them, random ones at several batch sizes.
        shapes: sizes of inputs that the file leaves free (beyond the batch).
        tolerance: largest difference relative to the largest value of an output.
        force: overwrite `target`.

    Raises:
        ModelLoadError: `source` cannot be read or run.
        OutputExistsError: `target` exists.
        PlanError: the plan does not fit the file.
        VerificationError: the slim file differs; names the first value that does. Nothing is written.
    """
    refuse_overwrite(target, force)
    if plan is not None and not isinstance(plan, PruningPlan):
        plan = PruningPlan.load(plan)
    model = load_model(source)
    removal = slim_model(model, plan)
    ZeroDenormalsPass()(model)
    model.producer_name, model.producer_version = "graphprune", __version__
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(source) if plan is None else _masked(source, plan, Path(folder))
        with written(model, Path(target)) as draft:
            _check(draft, Path(target).name)
            error = _compare(reference, draft, inputs, shapes, tolerance)
            before, after = onnx_cost(source, shapes=shapes), onnx_cost(draft, shapes=shapes)
    return SlimReport(
        removed_groups=removal.removal.groups,
        removed_channels=removal.removal.channels,
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        bytes_before=before.size_bytes,
        bytes_after=after.size_bytes,
        max_error=error,
        unknown_operators=removal.unknown,
    )


def _masked(source: str | os.PathLike[str], plan: PruningPlan, folder: Path) -> Path:
    """The file with the planned channels set to zero, which the slim one must equal."""
    graph = trace_onnx(load_model(source), whole_heads=plan.options.get("whole_heads", False))
    mask_groups(graph, planned_groups(graph, plan))
    path = folder / "masked.onnx"
    with written(graph.front_end.model, path):
        pass
    return path


def _check(path: Path, name: str) -> None:
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"{name}: the slim file would be no valid ONNX: {one_line(error)}") from error


def _compare(
    reference: Path,
    draft: Path,
    inputs: Mapping[str, np.ndarray] | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    tolerance: float,
) -> float:
    specs = input_specs(open_session(reference), reference.name)
    if inputs is not None:
        cases = [tuple(inputs[spec.name] for spec in specs)]
    else:
        cases = []
        for batch in _BATCHES:
            feeds = random_inputs(specs, input_shapes(specs, batch=batch, shapes=shapes, name=reference.name))
            cases.append(tuple(feeds[spec.name] for spec in specs))
    labels = ("the masked file", "the slim file")
    return max(require_equal(reference, draft, case, rtol=tolerance, labels=labels).worst.error for case in cases)
