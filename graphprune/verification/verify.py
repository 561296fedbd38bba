"""Whether two models compute the same thing, on given inputs.

The measure is max |a - b| relative to max |a| of each output (see `closeness`); beside it stands the agreement,
the share of samples that both models put into the same class. A comparison that fails is explained: by the
output, its error, the tolerance, and the first value inside the two graphs that differs.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.passes.errors import DataError, GraphPruneError, VerificationError
from graphprune.passes.onnx.model import load_model
from graphprune.verification.bisection import find_first_difference
from graphprune.verification.closeness import Agreement, Judge, OutputComparison
from graphprune.verification.model_runner import Model, Runner, open_runner

__all__ = [
    "Comparison",
    "OutputComparison",
    "compare",
    "explain",
    "first_difference",
    "require_equal",
    "tolerance_of",
]

ATOL = 1e-6
RTOL = 1e-4
#: Where every layer rounds to coarser numbers than float32, another order of a sum alone makes some units of rounding.
_COARSER = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 8e-2}
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two models.

    Attributes:
        outputs: One entry for each output.
        agreement: Share of samples on which the largest element along dimension 1 of a float output is at the same
            place; of several outputs the lowest, None when there is none.
        samples: Number of samples compared.
        rtol: The relative tolerance.
        atol: The absolute tolerance.
    """

    outputs: tuple[OutputComparison, ...]
    agreement: float | None
    samples: int
    rtol: float
    atol: float

    @property
    def equal(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.equal for output in self.outputs)

    @property
    def worst(self) -> OutputComparison:
        """The output with the largest error; one beyond the tolerance before any within it."""
        return max(self.outputs, key=lambda output: (not output.equal, output.error))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite number becomes None."""
        plain = {**asdict(self), "outputs": [asdict(output) for output in self.outputs], "equal": self.equal}
        for output in plain["outputs"]:
            output.update({k: None for k, v in output.items() if isinstance(v, float) and not np.isfinite(v)})
        return plain


def tolerance_of(model: ir.Model) -> float:
    """The relative tolerance for files that must compute the same: that of the coarsest numbers it computes with.

    Weights that are only kept in such numbers, and cast before they are used, do not count.
    """
    computed = (
        value.dtype
        for value in model.graph.initializers.values()
        if any(use.node.op_type != "Cast" for use in value.uses())
    )
    return max((_COARSER.get(dtype, RTOL) for dtype in computed if dtype is not None), default=RTOL)


def _tolerance_of_file(model: Model) -> float:
    """The same for a file; whatever is none counts as float32."""
    if not isinstance(model, str | os.PathLike):
        return RTOL
    try:
        return tolerance_of(load_model(model))
    except GraphPruneError:  # whether onnxruntime can run it is seen when it is opened
        return RTOL


def compare(
    reference: Model,
    candidate: Model,
    inputs: Any,
    *,
    rtol: float | None = None,
    atol: float = ATOL,
    batch_size: int = _BATCH_SIZE,
    unoptimized: bool = False,
    labels: tuple[str, str] | None = None,
) -> Comparison:
    """Run both models on `inputs` and return how far their outputs are apart.

    Args:
        reference: ONNX file (path or content), torch module, or exported program.
        candidate: The model to judge; any of the same kinds.
        inputs: An array or tensor with the samples along dimension 0, or a tuple of them, by position.
        rtol: Tolerated error relative to the output's scale; by default what the number formats of ONNX files leave:
            1e-4, and 1e-2 where one computes in float16.
        atol: Tolerated absolute difference, for outputs that are zero throughout.
        batch_size: Samples that are run at a time; a model with a fixed batch overrides it.
        unoptimized: Compare a second time with onnxruntime's graph optimization switched off, and report the
            larger error of the two.
        labels: What to call the two models in an error message; by default their paths.

    Raises:
        VerificationError: The models have different numbers of outputs.
        DataError: The inputs do not fit a model.
        ModelLoadError: An ONNX file cannot be loaded.
    """
    arrays = _as_arrays(inputs)
    rtol = max(_tolerance_of_file(model) for model in (reference, candidate)) if rtol is None else rtol
    result: Comparison | None = None
    for optimize in (True, False) if unoptimized else (True,):
        first, second = _open_both(reference, candidate, labels, optimize=optimize)
        found = _compare_runners(first, second, arrays, rtol, atol, batch_size)
        result = found if result is None else _worse_of(result, found)
    assert result is not None
    return result


def require_equal(reference: Model, candidate: Model, inputs: Any, **options: Any) -> Comparison:
    """Return the comparison of two models that must compute the same; `options` are those of `compare`.

    Raises:
        VerificationError: They do not. The message names the output, the error, the tolerance and, where both
            graphs give names to their values, the first value that differs.
    """
    comparison = compare(reference, candidate, inputs, **options)
    if not comparison.equal:
        raise VerificationError(explain(comparison, reference, candidate, inputs, labels=options.get("labels")))
    return comparison


def explain(
    comparison: Comparison,
    reference: Model,
    candidate: Model,
    inputs: Any,
    *,
    labels: tuple[str, str] | None = None,
) -> str:
    """Return one line that says where a failed comparison failed, and the first value inside that differs."""
    worst = comparison.worst
    first, second = _open_both(reference, candidate, labels, optimize=False)
    said = worst.problem or f"differs by {worst.error:.2g} of its scale, {comparison.rtol:.2g} is tolerated"
    message = f"{second.label} does not compute what {first.label} does: output '{worst.name}' {said}"
    arrays = _as_arrays(inputs)
    sample = _take(arrays, np.array([worst.worst_sample % comparison.samples]))
    found = _first_difference(first, second, sample, comparison.rtol, comparison.atol)
    return f"{message}; first difference inside: {found}" if found else message


def first_difference(
    reference: Model, candidate: Model, inputs: Any, *, rtol: float = RTOL, atol: float = ATOL
) -> str | None:
    """Name the first value inside two graphs that differs beyond the tolerance, by bisection (see `bisection`).

    None when nothing differs, or when a model has no names to go by.
    """
    first, second = _open_both(reference, candidate, None, optimize=False)
    return _first_difference(first, second, _as_arrays(inputs), rtol, atol)


def _first_difference(
    first: Runner, second: Runner, arrays: tuple[np.ndarray, ...], rtol: float, atol: float
) -> str | None:
    batch = next(_batches(arrays, _BATCH_SIZE, first, second))
    found = find_first_difference(first, second, batch, rtol, atol, same_faults=True)
    return found or find_first_difference(first, second, batch, rtol, atol, same_faults=False)


def _open_both(
    reference: Model, candidate: Model, labels: tuple[str, str] | None, *, optimize: bool
) -> tuple[Runner, Runner]:
    names = labels or (None, None)
    first = open_runner(reference, label=names[0], optimize=optimize)
    return first, open_runner(candidate, label=names[1], optimize=optimize)


def _compare_runners(
    first: Runner, second: Runner, arrays: tuple[np.ndarray, ...], rtol: float, atol: float, batch_size: int
) -> Comparison:
    judges: list[Judge] = []
    agreement = Agreement()
    samples = _samples(arrays)
    step = _step(first, second, batch_size)
    for index, batch in enumerate(_batches(arrays, batch_size, first, second)):
        ours, theirs = first.run(batch), second.run(batch)
        theirs = _in_order(first, second, ours, theirs)
        names = first.output_names or second.output_names or tuple(f"output_{i}" for i in range(len(ours)))
        judges = judges or [Judge(name, rtol, atol) for name in names]
        for judge, a, b in zip(judges, ours, theirs, strict=True):
            judge.see(a, b, at=index * step)
        agreement.see(ours, theirs, rows=min(step, samples - index * step))
    results = tuple(judge.result() for judge in judges)
    return Comparison(results, agreement.share, samples, rtol, atol)


def _in_order(first: Runner, second: Runner, ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[np.ndarray]:
    """Return the candidate's outputs in the reference's order: by name when the names are the same, else by place."""
    if len(ours) != len(theirs):
        raise VerificationError(f"{second.label} has {len(theirs)} outputs where {first.label} has {len(ours)}")
    names, others = first.output_names, second.output_names
    if names and others and set(names) == set(others):
        return [theirs[others.index(name)] for name in names]
    return theirs


def _worse_of(one: Comparison, other: Comparison) -> Comparison:
    pairs = zip(one.outputs, other.outputs, strict=True)
    outputs = tuple(max(pair, key=lambda output: (not output.equal, output.error)) for pair in pairs)
    shares = [share for share in (one.agreement, other.agreement) if share is not None]
    return Comparison(outputs, min(shares, default=None), one.samples, one.rtol, one.atol)


def _as_arrays(inputs: Any) -> tuple[np.ndarray, ...]:
    items = inputs if isinstance(inputs, tuple | list) else (inputs,)
    arrays = tuple(np.asarray(item.detach().cpu() if hasattr(item, "detach") else item) for item in items)
    if not arrays or not _samples(arrays):
        raise DataError("there is no input to compare the models on")
    return arrays


def _samples(arrays: tuple[np.ndarray, ...]) -> int:
    return len(arrays[0]) if arrays[0].ndim else 1


def _step(first: Runner, second: Runner, batch_size: int) -> int:
    return first.fixed_batch or second.fixed_batch or batch_size


def _batches(
    arrays: tuple[np.ndarray, ...], batch_size: int, first: Runner, second: Runner
) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut the inputs into batches; where a model's batch is fixed, the last one is filled up from the start."""
    samples, step = _samples(arrays), _step(first, second, batch_size)
    is_fixed = first.fixed_batch or second.fixed_batch
    for start in range(0, samples, step):
        stop = start + step if is_fixed else min(start + step, samples)
        yield _take(arrays, np.arange(start, stop) % samples)


def _take(arrays: tuple[np.ndarray, ...], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Select samples of every input that has as many along dimension 0 as the first; others are shared by all."""
    samples = _samples(arrays)
    return tuple(array[rows] if array.ndim and len(array) == samples else array for array in arrays)
