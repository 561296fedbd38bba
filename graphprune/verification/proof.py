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
from graphprune.verification.judging import Answer, Judges
from graphprune.verification.rounding import allow_rounding
from graphprune.verification.selection import SelectionPair, pair_selections
from graphprune.verification.verify import LAST_PLACE, first_difference, tolerance_of

__all__ = ["Proof", "Verdict", "run_reference"]

#: Batch sizes that a file is run at, where the batch is free.
_BATCHES = (1, 2)

_FEW = 2  # cases that are looked at again
_APART = 1 << 20  # more samples than a case has

_REFERENCE, _OURS = "the given file", "the slim file"


@dataclass(frozen=True)
class Verdict:
    """What a proof has shown.

    Attributes:
        error: the largest error of an output, in the scale of its place.
        notes: what could not be compared, in words.
    """

    error: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proof:
    """What the reference gave: inputs and answers of each case, kept so that one model is in memory at a time.

    Attributes:
        path: the reference.
        names: of its outputs.
        watched: names of the values that enter the part of it that selects, and are no outputs.
        cases: inputs by name, and what was given for them.
    """

    path: Path
    names: tuple[str, ...]
    watched: tuple[str, ...]
    cases: tuple[tuple[dict[str, np.ndarray], Answer], ...]

    def shortened(self) -> "Proof":
        """The first case alone: enough to see that a graph was written well in which nothing was changed."""
        return replace(self, cases=self.cases[:1])

    def verdict_on(self, draft: Path, tolerance: float) -> Verdict:
        """What was found out of the file `draft`.

        A file with sums of products of bytes gets a second chance where those do not saturate: the processor may clip
        them otherwise for other channels beside each other.

        Raises:
            VerificationError: an output is beyond the tolerance; names the first value inside that differs. Or there
                was nothing to compare.
        """
        pair = pair_selections(self.path, draft)
        assert pair is not None
        found = self._answers(_open(draft, _OURS, pair.watched[1]), pair.watched[1])
        judges = self._judged(pair, [expected for _, expected in self.cases], found, draft, tolerance)
        if not judges.pass_all() and _multiplies_bytes(draft):
            both = ((self.path, _REFERENCE, self.watched), (draft, _OURS, pair.watched[1]))
            threads = machine_facts().logical_cores
            with suppress(ModelLoadError):  # onnxruntime cannot make every file exact
                ours, theirs = (
                    self._answers(
                        open_session(path, name=name, threads=threads, saturates=False, outputs=watched), watched
                    )
                    for path, name, watched in both
                )
                judges = self._judged(pair, ours, theirs, draft, tolerance)
        if not judges.pass_all():
            outputs, inside = judges.results()
            worst = max((*outputs, *inside), key=lambda result: result.badness)
            raise VerificationError(self._explain(draft, worst, tolerance))
        return _verdict(judges)

    def distance_to(self, draft: Path, tolerance: float) -> Verdict:
        """How far a file is that is meant to compute something else: the error is no judgement. NaN: nothing says it.

        Raises:
            VerificationError: an output has another form than the reference's, or is not finite where that is.
        """
        pair = pair_selections(self.path, draft)
        selected = () if pair is None else pair.outputs
        judges = [Judge(name, tolerance) for name in self.names]
        apart: dict[str, str] = {}
        found = self._answers(_open(draft, _OURS, ()), ())
        for at, ((feed, expected), ours) in enumerate(zip(self.cases, found, strict=True)):
            for judge, a, b in zip(judges, expected.outputs, ours.outputs, strict=True):
                is_number = np.issubdtype(a.dtype, np.inexact)
                if a.shape != b.shape and judge.name in selected:
                    apart[judge.name] = f"'{judge.name}' selects another number of things, not compared"
                elif a.shape == b.shape and is_number and not np.isfinite(a).all():
                    apart[judge.name] = f"'{judge.name}' is not finite with the channels at zero, not compared"
                else:
                    judge.see(a, b, at * _APART, rows=_rows(feed))
                if judge.problem:
                    raise VerificationError(f"{_OURS} is no good: output '{judge.name}' {judge.problem}")
        results = [judge.result() for judge in judges]
        error = max((each.error for each in results if each.compared), default=float("nan"))
        return Verdict(error, tuple(apart.values()))

    def problem_when_optimized(self, draft: Path) -> str:
        """What keeps onnxruntime from running a quantized file as it does by default, or "".

        A proof runs graphs as they are written. By default operators of quantized files become others, which some of
        them do not fit: then it is made without a word, and its first run is an error.
        """
        if not _multiplies_bytes(draft):
            return ""
        problem = self._first_run(draft, _OURS)
        way = "no other way" if problem and self._first_run(self.path, _REFERENCE) else "by default"
        return f"{problem}; the file that it was made from runs {way}" if problem else ""

    def _first_run(self, path: Path, name: str) -> str:
        """Why onnxruntime does not run a file on the first case by default, or ""."""
        try:
            _run(open_session(path, name=name), self.names, (), self.cases[0][0])
        except ModelLoadError as error:
            return str(error)
        except RUNTIME_ERRORS as error:
            return one_line(error)
        return ""

    def _answers(self, session: ort.InferenceSession, watched: Sequence[str]) -> list[Answer]:
        try:
            return [_run(session, self.names, watched, feed) for feed, _ in self.cases]
        except RUNTIME_ERRORS as error:
            raise VerificationError(f"onnxruntime cannot run {_OURS}: {one_line(error)}") from error

    def _judged(
        self,
        pair: SelectionPair | None,
        expected: Sequence[Answer],
        found: Sequence[Answer],
        draft: Path,
        tolerance: float,
    ) -> Judges:
        """All cases before the judges; the reference is opened again where it has to be known what rounding moves."""
        judges = Judges(self.names, tolerance, None, pair, same_faults=True)
        for at, ((feed, _), ours, theirs) in enumerate(zip(self.cases, expected, found, strict=True)):
            judges.see(ours, theirs, at * _APART, _rows(feed))
        suspects = dict.fromkeys(sample // _APART for sample in judges.suspects())
        if suspects:
            unit = LAST_PLACE[tolerance_of(load_model(draft))]
            session = _open(self.path, _REFERENCE, self.watched)
            for at in [*suspects][:_FEW]:
                names = tuple(self.cases[at][0])

                def run(arrays: Sequence[np.ndarray], names: Sequence[str] = names) -> list[np.ndarray]:
                    answer = _run(session, self.names, self.watched, dict(zip(names, arrays, strict=True)))
                    return judges.numbers(answer, of_second=False)

                allow_rounding(judges.all, run, list(self.cases[at][0].values()), tolerance, unit)
        return judges

    def _explain(self, draft: Path, result: OutputComparison, tolerance: float) -> str:
        feed, expected = self.cases[result.worst_sample // _APART]
        again = _run(_open(self.path, _REFERENCE, self.watched), self.names, self.watched, feed)
        alone = replace(self, cases=((feed, expected),))
        if not alone._judged(None, [expected], [again], draft, tolerance).pass_all(unless_empty=True):
            return (
                f"{_REFERENCE} gives other numbers every time it is run, so nothing can be compared with it: it holds "
                "random operators (a Dropout in training mode, perhaps); export the model in eval mode"
            )
        if not result.compared:
            return f"output '{result.name}' {result.problem}; give arrays on which the model finds something"
        try:
            found = first_difference(self.path, draft, tuple(feed.values()), rtol=tolerance)
        except GraphPruneError:  # too large to look into: that the files differ is what counts
            found = None
        where = f"; first difference inside: {found}" if found else ""
        what = "output" if result.name in self.names else "inside,"
        return (
            f"{_OURS} does not compute what {_REFERENCE} does: {what} '{result.name}' {result.said(tolerance)}{where}"
        )


def _verdict(judges: Judges) -> Verdict:
    outputs, inside = judges.results()
    error = max((found.error for found in (*outputs, *inside) if found.compared), default=0.0)
    notes = []
    if empty := [found.name for found in outputs if found.proven]:
        notes.append(
            f"nothing of {', '.join(map(repr, empty))} was there to compare: the model finds nothing in the inputs. "
            f"Compared is what enters its selection, and what that makes of random numbers; "
            "arrays of real images say more"
        )
    for judge in judges.outputs:
        if judge.faults:
            notes.append(f"{judge.faults} elements of '{judge.name}' are NaN or infinite in both files, not compared")
    return Verdict(error, tuple(notes))


def _run(
    session: ort.InferenceSession, names: Sequence[str], watched: Sequence[str], feed: Mapping[str, np.ndarray]
) -> Answer:
    found = [np.asarray(value) for value in session.run([*names, *watched], dict(feed))]
    return Answer(found[: len(names)], {**dict(zip((*names, *watched), found, strict=True)), **feed})


def _rows(feed: Mapping[str, np.ndarray]) -> int | None:
    first = next(iter(feed.values()), np.zeros(()))
    return len(first) if first.ndim else None


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
    pair = pair_selections(reference, reference)
    watched = () if pair is None else pair.watched[0]
    session = _open(reference, name, watched)
    specs = input_specs(session, name)
    names = tuple(output.name for output in session.get_outputs()[: len(session.get_outputs()) - len(watched)])
    feeds = [
        random_inputs(specs, input_shapes(specs, batch=batch, shapes=shapes, name=name), seed)
        for seed, batch in enumerate(_BATCHES)
    ]
    given = None if inputs is None else _given(specs, inputs, name)
    cases, problem = [], ""
    for feed in (*feeds, *([given] if given else [])):
        try:
            cases.append((feed, _run(session, names, watched, feed)))
        except RUNTIME_ERRORS as error:  # a file with a batch size hidden in it; another may do
            problem = one_line(error)
            if feed is given:
                raise DataError(f"{name}: onnxruntime cannot run it on the arrays given: {problem}") from error
    if not cases:
        taken = ", ".join(f"'{spec.name}'" for spec in specs)
        raise ModelLoadError(
            f"{name}: onnxruntime cannot run it on random numbers: {problem}; give arrays that it takes for {taken}: "
            "inputs="
        )
    return Proof(Path(reference), names, watched, tuple(cases))


def _open(path: str | os.PathLike[str], name: str, watched: Sequence[str]) -> ort.InferenceSession:
    threads = machine_facts().logical_cores
    return open_session(path, optimize=False, name=name, threads=threads, mapped=True, outputs=watched)


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
