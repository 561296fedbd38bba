"""Judging what two models give, batch by batch: their outputs, and what enters the part of them that selects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from graphprune.verification.closeness import Judge, OutputComparison, tolerated
from graphprune.verification.selection import SelectionPair, random_values

__all__ = ["Answer", "Judges"]

Verdicts = tuple[tuple[OutputComparison, ...], tuple[OutputComparison, ...]]


@dataclass(frozen=True)
class Answer:
    """What a model gives for a batch.

    Attributes:
        outputs: in the reference's order.
        values: those that enter its selection, by name; inputs of the model are among them.
    """

    outputs: Sequence[np.ndarray]
    values: Mapping[str, np.ndarray] = field(default_factory=dict)


class Judges:
    """A judge for every output, and for every value that enters the part that selects.

    Args:
        names: of the outputs, in the reference's order.
        rtol: relative tolerance.
        atol: absolute one; see `Judge`.
        pair: the selections of both models, where both are ONNX.
        same_faults: leave out what is NaN or the same infinity in both.
    """

    def __init__(
        self,
        names: Sequence[str],
        rtol: float,
        atol: float | None,
        pair: SelectionPair | None,
        *,
        same_faults: bool = False,
    ) -> None:
        self.names = tuple(names)
        self._rtol, self._same_faults = rtol, same_faults
        self.atol = tolerated(rtol, atol)
        self._pair = pair
        self._selected = set() if pair is None else {self.names.index(name) for name in pair.outputs}
        # Where all that enters a selection is compared as numbers, no index may differ for the rounding of those.
        exact = pair is not None and (pair.complete or not self._selected)
        self.outputs = [Judge(name, rtol, atol, exact=exact) for name in self.names]
        fronts = () if pair is None else tuple(front for front in pair.fronts if front[0] not in self.names)
        self.inside = {front: Judge(front[0], rtol, atol, exact=True) for front in fronts}
        self.turned_over = 0
        self._values: Mapping[str, np.ndarray] = {}  # of the first batch
        self._types: Mapping[str, np.dtype] = {}
        self._verdicts: Verdicts | None = None

    def see(self, ours: Answer, theirs: Answer, at: int, rows: int | None) -> None:
        """Take in a batch, whose first sample has the index `at`; `rows` is its size."""
        self._verdicts = None
        found, expected = list(theirs.outputs), list(ours.outputs)
        if self._pair is not None and self._pair.complete and self._selected and self._have_same_fronts(ours, theirs):
            self._values = self._values or ours.values
            self._types = self._types or {name: array.dtype for name, array in theirs.values.items()}
            if not all(self._is_equal(expected[index], found[index], rows) for index in self._selected):
                self._select_again(ours.values, expected, found)
        for judge, a, b in zip(self.outputs, expected, found, strict=True):
            judge.see(a, b, at, rows=rows, same_faults=self._same_faults)
        for (one, other), judge in self.inside.items():
            a, b = ours.values[one], theirs.values[other]
            if a.shape == b.shape:  # of another size it may have been cut, which is no fault as long as outputs equal
                judge.see(a, b, at, rows=rows, same_faults=True)

    def _have_same_fronts(self, ours: Answer, theirs: Answer) -> bool:
        assert self._pair is not None
        return all(ours.values[one].shape == theirs.values[other].shape for one, other in self._pair.fronts)

    def _is_equal(self, a: np.ndarray, b: np.ndarray, rows: int | None) -> bool:
        judge = Judge("", self._rtol, self.atol, exact=True)
        judge.see(a, b, 0, rows=rows, same_faults=True)
        return a.shape == b.shape and (not a.size or judge.result().equal)

    def _select_again(
        self, values: Mapping[str, np.ndarray], expected: list[np.ndarray], found: list[np.ndarray]
    ) -> None:
        """Put what both selections make of the reference's values in place of what they made of their own."""
        assert self._pair is not None
        again = self._pair.select(values, self._types)
        if again is None:
            return
        self.turned_over += 1
        for name, ours in again[0].items():
            index = self.names.index(name)
            expected[index], found[index] = ours, again[1][name]

    def suspects(self) -> list[int]:
        """Samples to be looked at again; see `Judge.suspects`."""
        each = [judge.suspects() for judge in self.all]
        longest = max(map(len, each), default=0)
        return list(dict.fromkeys(found[at] for at in range(longest) for found in each if at < len(found)))

    @property
    def all(self) -> list[Judge]:
        """Those of the outputs, and then the others."""
        return [*self.outputs, *self.inside.values()]

    def numbers(self, answer: Answer, *, of_second: bool) -> list[np.ndarray]:
        """What the judges judge of an answer, in their order."""
        return [*answer.outputs, *(answer.values[front[of_second]] for front in self.inside)]

    def pass_all(self, *, unless_empty: bool = False) -> bool:
        """Is there nothing against any of the outputs, and of what enters the selection?"""
        outputs, inside = self.results()
        return all(found.passes or (unless_empty and not found.compared) for found in (*outputs, *inside))

    def results(self) -> Verdicts:
        """The verdicts over everything seen: of the outputs, and of what enters the selection."""
        if self._verdicts is None:
            self._verdicts = self._judge()
        return self._verdicts

    def _judge(self) -> Verdicts:
        outputs = [judge.result() for judge in self.outputs]
        inside = [judge.result() for judge in self.inside.values()]
        if self._pair is None:
            return tuple(outputs), ()
        fronts = {ours for ours, _ in self._pair.fronts}
        if all(found.equal for found in (*inside, *(output for output in outputs if output.name in fronts))):
            outputs = self._rehearsed(outputs)
        named = (replace(found, name=self._pair.describe(found.name)) for found in inside if found.compared)
        return tuple(outputs), tuple(named)

    def _rehearsed(self, outputs: list[OutputComparison]) -> list[OutputComparison]:
        """The verdicts, with what both selections make of random values taken in."""
        if self._pair is None or not self._values:
            return outputs
        if self._pair.are_the_same:
            return [replace(found, proven=True) if not found.compared else found for found in outputs]
        # Numbers of another type are not quite the same, and a threshold may lie between them.
        is_exact = self._pair.has_same(self._values, self._types)
        for values in random_values(self._values, [ours for ours, _ in self._pair.fronts]):
            ours, theirs = self._pair.select(values, self._types) or ({}, {})
            for name, a in ours.items():
                at, b = self.names.index(name), theirs[name]
                if (not a.size and not b.size) or not (outputs[at].passes or not outputs[at].compared):
                    continue
                is_equal = self._is_equal(a, b, None)
                if is_exact and not is_equal:
                    problem = f"is another one where the same random numbers enter {self._pair.kind}"
                    outputs[at] = replace(outputs[at], equal=False, proven=False, compared=True, problem=problem)
                elif is_equal and not outputs[at].compared:
                    outputs[at] = replace(outputs[at], proven=True)
        return outputs
