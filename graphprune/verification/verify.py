"""Whether two models compute the same thing, on given inputs.

The measure is the largest difference in each output, every position in its own scale (see `closeness`); beside it
stands the agreement of a classifier, the share of samples that both models put into the same class. Of a model that
selects, as a detector does, what enters the selection is compared as well (see `selection`). A comparison that fails is
explained: by the output, its error, the tolerance, and the first value inside the two graphs that differs.
"""

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.passes.errors import GraphPruneError, VerificationError
from graphprune.passes.onnx.model import load_model
from graphprune.verification.bisection import find_first_difference
from graphprune.verification.closeness import OutputComparison
from graphprune.verification.model_runner import Model, Runner, open_runner
from graphprune.verification.output_kinds import ends_of
from graphprune.verification.selection import SelectionPair, pair_selections
from graphprune.verification.side_by_side import Kernels, SideBySide, as_arrays, batches_of_both, some_samples

__all__ = [
    "Comparison",
    "OutputComparison",
    "compare",
    "explain",
    "first_difference",
    "require_equal",
    "rounds_in_between",
    "tolerance_of",
]

RTOL = 1e-4
#: Where every layer rounds to coarser numbers than float32, another order of a sum alone makes some units of rounding.
_COARSER = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 8e-2}
#: The last place of the numbers behind each of these tolerances, relative to them.
LAST_PLACE = {RTOL: 2.0**-23, 1e-2: 2.0**-10, 8e-2: 2.0**-7}
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two models.

    Attributes:
        outputs: One entry for each output.
        agreement: Where all outputs are answers and not numbers, how far these are the same (see `agreement`); else
            None.
        samples: Number of samples compared.
        rtol: The relative tolerance.
        atol: The absolute tolerance.
        inside: One entry for each value that enters the part that selects, where the two models have one.
        turned_over: Number of batches on which one selected otherwise than the other for the rounding of what enters.
    """

    outputs: tuple[OutputComparison, ...]
    agreement: float | None
    samples: int
    rtol: float
    atol: float
    inside: tuple[OutputComparison, ...] = ()
    turned_over: int = 0

    @property
    def equal(self) -> bool:
        """Whether every output is within the tolerance; one without elements if what it is made of is."""
        every = (*self.inside, *self.outputs)
        return all(output.passes for output in every) and any(output.equal for output in every)

    @property
    def worst(self) -> OutputComparison:
        """The output (or value that enters the selection) with the largest error; one beyond the tolerance first."""
        return max((*self.inside, *self.outputs), key=lambda found: found.badness)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite number becomes None."""
        plain = {**asdict(self), "equal": self.equal}
        for output in (*plain["outputs"], *plain["inside"]):
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
    if not _is_file(model) or isinstance(model, bytes):
        return RTOL
    try:
        return tolerance_of(load_model(model))
    except GraphPruneError:  # whether onnxruntime can run it is seen when it is opened
        return RTOL


def rounds_in_between(path: str | os.PathLike[str]) -> bool:
    """Does a file round to integers on its way? What kernels in bytes make of that depends on the processor."""
    return any(node.op_type == "DequantizeLinear" for node in load_model(path).graph)


def _is_file(model: Model) -> bool:
    """Is it an ONNX file, or the content of one?"""
    return isinstance(model, str | bytes | os.PathLike)


def compare(
    reference: Model,
    candidate: Model,
    inputs: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    batch_size: int = _BATCH_SIZE,
    unoptimized: bool = False,
    as_written: bool = False,
    labels: tuple[str, str] | None = None,
) -> Comparison:
    """Run both models on `inputs` and return how far their outputs are apart.

    Args:
        reference: ONNX file (path or content), torch module, or exported program.
        candidate: The model to judge; any of the same kinds.
        inputs: An array or tensor with the samples along dimension 0, or a tuple of them, by position.
        rtol: Tolerated error relative to the scale of each place of an output; by default what the number formats of
            ONNX files leave: 1e-4, and 1e-2 where one computes in float16.
        atol: Tolerated absolute difference, for what is zero throughout; by default a two-hundredth of `rtol`.
        batch_size: Samples that are run at a time; a model with a fixed batch overrides it.
        unoptimized: Compare a second time with onnxruntime's graph optimization switched off, and report the
            larger error of the two.
        as_written: Compare with it switched off alone: whether two graphs are the same, whatever kernels make of them.
            Those of bytes saturate on some processors.
        labels: What to call the two models in an error message; by default their paths.

    Raises:
        VerificationError: The models have different numbers of outputs.
        DataError: The inputs do not fit a model.
        ModelLoadError: An ONNX file cannot be loaded.
    """
    arrays = as_arrays(inputs)
    tolerances = [_tolerance_of_file(model) for model in (reference, candidate)]
    rtol = max(tolerances) if rtol is None else rtol
    pair, samples = pair_selections(reference, candidate), len(arrays[0]) if arrays[0].ndim else 1
    ends = ends_of(reference)
    result: Comparison | None = None
    for optimize in (True, False) if unoptimized else (not as_written,):
        runners = _open_both(reference, candidate, labels, optimize=optimize, pair=pair)
        judges, agreement = SideBySide(*runners, arrays, batch_size, pair, ends).judged(
            rtol, atol, _kernels((reference, candidate), tolerances, pair)
        )
        outputs, inside = judges.results()
        found = Comparison(outputs, agreement.share, samples, rtol, judges.atol, inside, judges.turned_over)
        result = found if result is None else _worse_of(result, found)
    assert result is not None
    return result


def _kernels(models: tuple[Model, Model], tolerances: list[float], pair: SelectionPair | None) -> Kernels:
    """Whose rounding counts: that of the coarser model, which other kernels show where onnxruntime has some."""
    of_second = tolerances[1] > tolerances[0]
    model, unit = models[of_second], LAST_PLACE[tolerances[of_second]]
    if not _is_file(model):
        return Kernels(unit, of_second)
    watched = pair.watched[of_second] if pair is not None else ()
    return Kernels(unit, of_second, lambda: open_runner(model, optimize=False, watched=watched, mapped=True))


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
    if not worst.compared:
        return (
            f"{second.label} and {first.label}: output '{worst.name}' {worst.problem}; give images or arrays on which "
            "the models find something"
        )
    what = "output" if worst in comparison.outputs else "inside,"
    message = (
        f"{second.label} does not compute what {first.label} does: {what} '{worst.name}' {worst.said(comparison.rtol)}"
    )
    arrays = as_arrays(inputs)
    sample = some_samples(arrays, np.array([worst.worst_sample % comparison.samples]))
    found = _first_difference(first, second, sample, comparison.rtol, comparison.atol)
    return f"{message}; first difference inside: {found}" if found else message


def first_difference(
    reference: Model, candidate: Model, inputs: Any, *, rtol: float = RTOL, atol: float | None = None
) -> str | None:
    """Name the first value inside two graphs that differs beyond the tolerance, by bisection (see `bisection`).

    None when nothing differs, or when a model has no names to go by.
    """
    first, second = _open_both(reference, candidate, None, optimize=False)
    return _first_difference(first, second, as_arrays(inputs), rtol, atol)


def _first_difference(
    first: Runner, second: Runner, arrays: tuple[np.ndarray, ...], rtol: float, atol: float | None
) -> str | None:
    batch = next(batches_of_both(arrays, _BATCH_SIZE, first, second))
    found = find_first_difference(first, second, batch, rtol, atol, same_faults=True)
    return found or find_first_difference(first, second, batch, rtol, atol, same_faults=False)


def _open_both(
    reference: Model,
    candidate: Model,
    labels: tuple[str, str] | None,
    *,
    optimize: bool,
    pair: SelectionPair | None = None,
) -> tuple[Runner, Runner]:
    names = labels or (None, None)
    watched = ((), ()) if pair is None else pair.watched
    first = open_runner(reference, label=names[0], optimize=optimize, watched=watched[0])
    return first, open_runner(candidate, label=names[1], optimize=optimize, watched=watched[1])


def _worse_of(one: Comparison, other: Comparison) -> Comparison:
    """The verdicts of two comparisons of the same models, the worse one of each output."""
    outputs, inside = (
        tuple(max(pair, key=lambda found: found.badness) for pair in zip(a, b, strict=True))
        for a, b in ((one.outputs, other.outputs), (one.inside, other.inside))
    )
    shares = [share for share in (one.agreement, other.agreement) if share is not None]
    turned_over = max(one.turned_over, other.turned_over)
    return replace(one, outputs=outputs, inside=inside, agreement=min(shares, default=None), turned_over=turned_over)
