"""Two models run on the same inputs, batch by batch, before the same judges."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.passes.channels.ends import End
from graphprune.passes.errors import DataError, VerificationError
from graphprune.verification.agreement import Agreement
from graphprune.verification.judging import Answer, Judges
from graphprune.verification.model_runner import Runner
from graphprune.verification.output_kinds import are_floats, kinds_of
from graphprune.verification.rounding import allow_rounding
from graphprune.verification.selection import SelectionPair

__all__ = ["Kernels", "SideBySide", "as_arrays", "batches_of_both", "some_samples"]

#: Samples at a time where values inside are looked at as well, and how many are looked at again.
_FEW = 4


@dataclass(frozen=True)
class Kernels:
    """Whose rounding the outputs of two models differ by.

    Attributes:
        unit: the last place of the numbers that the coarser of both models computes with, relative to them.
        of_second: whether that is the candidate.
        others: opens that model with other kernels, if there are some.
    """

    unit: float
    of_second: bool = False
    others: Callable[[], Runner] | None = None


@dataclass(frozen=True)
class SideBySide:
    """Two models, and what to run them on.

    Attributes:
        first: the reference.
        second: the candidate.
        arrays: inputs by position, the samples along dimension 0.
        batch_size: samples at a time, where neither model has a batch of its own.
        pair: the parts of both that select, where they are known; the runners then watch what enters them.
        ends: what ends the reference at each of its outputs, where that is known.
    """

    first: Runner
    second: Runner
    arrays: tuple[np.ndarray, ...]
    batch_size: int
    pair: SelectionPair | None = None
    ends: Sequence[End | None] = ()

    def judged(self, rtol: float, atol: float | None, kernels: "Kernels") -> tuple[Judges, Agreement]:
        """Run both on all inputs; where the tolerance of a place is missed by little, see what rounding moves there.

        Args:
            rtol: relative tolerance.
            atol: absolute one.
            kernels: whose rounding that is.

        Raises:
            VerificationError: the models have different numbers of outputs, or none.
        """
        judges: Judges | None = None
        agreement = Agreement()
        step, samples = self._step, _samples(self.arrays)
        for index, batch in enumerate(batches_of_both(self.arrays, step, self.first, self.second)):
            ours, theirs = Answer(*self.first.answer(batch)), self._answer_of_second(self.second, batch)
            self._require_as_many(len(ours.outputs), len(theirs.outputs))
            if judges is None:
                names = self.first.output_names or self.second.output_names
                judges = Judges(names or [f"output_{i}" for i in range(len(ours.outputs))], rtol, atol, self.pair)
            judges.see(ours, theirs, index * step, _rows(batch))
            shapes, floats = [o.shape for o in ours.outputs], are_floats(ours.outputs)
            kinds = kinds_of(shapes, "auto", self.ends, _rows(batch), floats)
            agreement.see(ours.outputs, theirs.outputs, kinds, rows=min(step, samples - index * step))
        assert judges is not None
        suspects = np.array([sample % samples for sample in judges.suspects()[:_FEW]], dtype=int)
        if len(suspects):
            self._look_again(judges, some_samples(self.arrays, suspects), rtol, kernels)
        return judges, agreement

    def _look_again(self, judges: Judges, few: tuple[np.ndarray, ...], rtol: float, kernels: "Kernels") -> None:
        """Tolerate what rounding moves on a few samples."""
        run = self._numbers(judges, self.second if kernels.of_second else self.first, kernels.of_second)
        other = None if kernels.others is None else self._numbers(judges, kernels.others(), kernels.of_second)
        for batch in batches_of_both(few, self._step, self.first, self.second):
            allow_rounding(judges.all, run, batch, rtol, kernels.unit, again=other)

    @property
    def _step(self) -> int:
        few = _FEW if self.pair is not None and any(self.pair.watched) else self.batch_size
        return self.first.fixed_batch or self.second.fixed_batch or min(self.batch_size, few)

    def _answer_of_second(self, runner: Runner, batch: Sequence[np.ndarray]) -> Answer:
        """What the candidate gives, its outputs in the reference's order."""
        outputs, values = runner.answer(batch)
        names, others = self.first.output_names, runner.output_names
        if names and others and set(names) == set(others):
            outputs = [outputs[others.index(name)] for name in names]
        return Answer(outputs, values)

    def _require_as_many(self, ours: int, theirs: int) -> None:
        if ours != theirs:
            raise VerificationError(f"{self.second.label} has {theirs} outputs where {self.first.label} has {ours}")
        if not ours:
            raise VerificationError(f"{self.first.label} gives no tensor, so nothing can be compared")

    def _numbers(
        self, judges: Judges, runner: Runner, of_second: bool
    ) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
        """A function that gives what the judges judge, in their order, as one of the two models gives it."""

        def run(batch: Sequence[np.ndarray]) -> list[np.ndarray]:
            answer = self._answer_of_second(runner, batch) if of_second else Answer(*runner.answer(batch))
            return judges.numbers(answer, of_second=of_second)

        return run


def as_arrays(inputs: Any) -> tuple[np.ndarray, ...]:
    """Inputs by position as arrays.

    Raises:
        DataError: there is none, or no sample.
    """
    items = inputs if isinstance(inputs, tuple | list) else (inputs,)
    arrays = tuple(np.asarray(item.detach().cpu() if hasattr(item, "detach") else item) for item in items)
    if not arrays or not _samples(arrays):
        raise DataError("there is no input to compare the models on")
    return arrays


def _samples(arrays: tuple[np.ndarray, ...]) -> int:
    return len(arrays[0]) if arrays[0].ndim else 1


def _rows(batch: Sequence[np.ndarray]) -> int | None:
    return len(batch[0]) if batch[0].ndim else None


def batches_of_both(
    arrays: tuple[np.ndarray, ...], batch_size: int, first: Runner, second: Runner
) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut the inputs into batches; where a model's batch is fixed, the last one is filled up from the start."""
    samples = _samples(arrays)
    is_fixed = first.fixed_batch or second.fixed_batch
    step = is_fixed or batch_size
    for start in range(0, samples, step):
        stop = start + step if is_fixed else min(start + step, samples)
        yield some_samples(arrays, np.arange(start, stop) % samples)


def some_samples(arrays: tuple[np.ndarray, ...], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Select samples of every input that has as many along dimension 0 as the first; others are shared by all."""
    samples = _samples(arrays)
    return tuple(array[rows] if array.ndim and len(array) == samples else array for array in arrays)
