"""The proof that a slim ONNX file computes what it was made from: both are run in onnxruntime on the same inputs."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from graphprune.passes.errors import DataError, GraphPruneError, ModelLoadError, VerificationError
from graphprune.passes.onnx.model import load_model
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_inputs import InputSpec, input_shapes, input_specs, random_inputs, refuse_other_shapes
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, one_line, open_session
from graphprune.verification.closeness import Judge, OutputComparison
from graphprune.verification.verify import ATOL, first_difference

__all__ = ["Proof", "run_reference"]

#: Batch sizes that a file is run at, where the batch is free.
_BATCHES = (1, 2)

_REFERENCE, _OURS = "the given file", "the slim file"


@dataclass(frozen=True)
class Proof:
    """What the reference gave: inputs and outputs of each case, kept so that one model is in memory at a time.

    Attributes:
        path: the reference.
        names: of its outputs.
        cases: inputs by name, and outputs in the order of `names`.
    """

    path: Path
    names: tuple[str, ...]
    cases: tuple[tuple[dict[str, np.ndarray], list[np.ndarray]], ...]

    def shortened(self) -> "Proof":
        """The first case alone: enough to see that a graph was written well in which nothing was changed."""
        return replace(self, cases=self.cases[:1])

    def error_of(self, draft: Path, tolerance: float) -> float:
        """The largest error of an output of the file `draft`, relative to the largest value of the output.

        A file with sums of products of bytes gets a second chance where those do not saturate: the processor may clip
        them otherwise for other channels beside each other.

        Raises:
            VerificationError: it is above the tolerance; names the first value inside that differs.
        """
        session = _open(draft, _OURS)
        worst = 0.0
        for feed, expected in self.cases:
            error, failed = self._judge(expected, self._run(session, feed), tolerance)
            if failed is not None and _multiplies_bytes(draft):
                with suppress(ModelLoadError):  # onnxruntime cannot make every file exact
                    exact = [
                        open_session(path, name=name, threads=machine_facts().logical_cores, saturates=False)
                        for path, name in ((self.path, _REFERENCE), (draft, _OURS))
                    ]
                    ours, theirs = (self._run(one, feed) for one in exact)
                    error, failed = self._judge(ours, theirs, tolerance)
            if failed is not None:
                del session
                raise VerificationError(self._explain(draft, feed, expected, failed, tolerance))
            worst = max(worst, error)
        return worst

    def _run(self, session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return [np.asarray(output) for output in session.run(list(self.names), feed)]
        except RUNTIME_ERRORS as error:
            raise VerificationError(f"onnxruntime cannot run {_OURS}: {one_line(error)}") from error

    def _judge(
        self, expected: Sequence[np.ndarray], found: Sequence[np.ndarray], tolerance: float
    ) -> tuple[float, OutputComparison | None]:
        """The largest error of an output, and the first output that is beyond the tolerance."""
        worst = 0.0
        for name, ours, theirs in zip(self.names, expected, found, strict=True):
            judge = Judge(name, tolerance, ATOL)
            judge.see(ours, theirs, at=0, same_faults=True)
            result = judge.result()
            if not result.equal:
                return worst, result
            worst = max(worst, result.error if result.scale > ATOL else 0.0)
        return worst, None

    def _explain(
        self,
        draft: Path,
        feed: Mapping[str, np.ndarray],
        expected: Sequence[np.ndarray],
        result: OutputComparison,
        tolerance: float,
    ) -> str:
        again = [np.asarray(output) for output in _open(self.path, _REFERENCE).run(list(self.names), dict(feed))]
        if self._judge(expected, again, tolerance)[1] is not None:
            return (
                f"{_REFERENCE} gives other numbers every time it is run, so nothing can be compared with it: it holds "
                "random operators (a Dropout in training mode, perhaps); export the model in eval mode"
            )
        said = result.problem or f"differs by {result.error:.2g} of its scale, {tolerance:.2g} is tolerated"
        try:
            found = first_difference(self.path, draft, tuple(feed.values()), rtol=tolerance)
        except GraphPruneError:  # too large to look into: that the files differ is what counts
            found = None
        where = f"; first difference inside: {found}" if found else ""
        return f"{_OURS} does not compute what {_REFERENCE} does: output '{result.name}' {said}{where}"


def run_reference(
    reference: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray] | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    name: str,
) -> Proof:
    """Run a file on random inputs at several batch sizes, and on those that were given.

    Without onnxruntime's optimization: what is compared are the graphs, and rounding to integers in between would make
    different fusions look like different results.

    Args:
        reference: the file.
        inputs: arrays by input name.
        shapes: sizes of inputs that the file leaves free (beyond the batch).
        name: what messages call the file.

    Raises:
        ModelLoadError: it cannot be loaded, or not be run at any of the batch sizes.
        DataError: an array is missing, empty, or not of numbers; or the file cannot be run on them.
        UsageError: an array has not the shape that the file states.
    """
    session = _open(reference, name)
    specs = input_specs(session, name)
    feeds = [random_inputs(specs, input_shapes(specs, batch=batch, shapes=shapes, name=name)) for batch in _BATCHES]
    given = None if inputs is None else _given(specs, inputs, name)
    cases, problem = [], ""
    for feed in (*feeds, *([given] if given else [])):
        try:
            cases.append((feed, [np.asarray(output) for output in session.run(None, feed)]))
        except RUNTIME_ERRORS as error:  # a file with a batch size hidden in it; another may do
            problem = one_line(error)
            if feed is given:
                raise DataError(f"{name}: onnxruntime cannot run it on the arrays given: {problem}") from error
    if not cases:
        raise ModelLoadError(f"{name}: onnxruntime cannot run it: {problem}")
    return Proof(Path(reference), tuple(output.name for output in session.get_outputs()), tuple(cases))


def _open(path: str | os.PathLike[str], name: str) -> ort.InferenceSession:
    return open_session(path, optimize=False, name=name, threads=machine_facts().logical_cores, mapped=True)


def _given(specs: Sequence[InputSpec], inputs: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Arrays as the model takes them.

    Raises:
        DataError: one is missing, empty, or not of numbers.
        UsageError: one has not the shape that the file states.
    """
    feed = {}
    for spec in specs:
        if spec.name not in inputs:
            raise DataError(f"{name}: no array is given for the input '{spec.name}'")
        try:
            array = np.asarray(inputs[spec.name]).astype(spec.dtype, copy=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: the array for the input '{spec.name}' is not of numbers") from error
        if not array.size:
            raise DataError(f"{name}: the array for the input '{spec.name}' is empty, of shape {array.shape}")
        if np.issubdtype(array.dtype, np.inexact) and np.isnan(array).any():
            raise DataError(
                f"{name}: the array for the input '{spec.name}' holds NaN, with which nothing can be compared"
            )
        feed[spec.name] = array
    refuse_other_shapes(specs, {key: array.shape for key, array in feed.items()}, name)
    return feed


def _multiplies_bytes(path: Path) -> bool:
    kinds = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DequantizeLinear"}
    kinds |= {"QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    return any(node.op_type in kinds for node in load_model(path).graph)
