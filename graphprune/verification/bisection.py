"""Where two graphs begin to compute different things, found by bisection.

Whatever a graph computes from some point on follows from the values that are alive there: given before the point and
read after it. So if two graphs agree on all values alive at a point, what makes their outputs differ comes after it;
if they do not, it came before. Each question is one run of both graphs with those values alone as outputs: of a graph
of 1000 operators ten such runs, and never all its values in memory.

Values are matched by name, as they are in two exports or two captures of one network. Where the candidate has fewer
channels (it is slim), it is compared with the reference's channels that are not zero throughout, if their number fits.
A value that cannot be matched says nothing, so the place that is found may be a little late. What rounding moves in a
value is no difference: the reference is asked once more for what it makes of inputs that differ in their last places.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from graphprune.verification.closeness import Judge
from graphprune.verification.model_runner import Runner
from graphprune.verification.rounding import shaken

__all__ = ["find_first_difference"]


def find_first_difference(
    first: Runner, second: Runner, inputs: Sequence[np.ndarray], rtol: float, atol: float | None, *, same_faults: bool
) -> str | None:
    """Name the first value inside two graphs that differs beyond the tolerance, and say by how much.

    With `same_faults`, elements that are NaN or the same infinity on both sides are no difference. None when nothing
    differs that can be matched, or when a model has no names to go by.
    """
    also = second.value_spans()
    spans = {name: span for name, span in first.value_spans().items() if name in also}
    search = _Search(first, second, inputs, rtol, atol, same_faults)
    names = list(spans)

    def alive(at: int) -> list[str]:
        point = spans[names[at]][0]
        return [name for name in names[: at + 1] if spans[name][1] > point or name == names[at]]

    low, high = -1, len(names)  # nothing alive at `low` differs; something alive at `high` does
    found: str | None = None
    middle = high - 1  # first of all: do the ends differ?
    while low < middle < high:
        different = search.first_different(alive(middle))
        if different is not None:
            found, high = search.said[different], names.index(different)
        elif middle < len(names) - 1 or search.compared:
            low = middle
        else:
            high = middle  # nothing can be said of the ends: they have other names
        middle = (low + high) // 2
    return found


class _Search:
    """What is known of values by name: what is wrong with them, or nothing."""

    def __init__(
        self,
        first: Runner,
        second: Runner,
        inputs: Sequence[np.ndarray],
        rtol: float,
        atol: float | None,
        same_faults: bool,
    ) -> None:
        self.runners = (first, second)
        self.inputs = inputs
        self.rtol, self.atol, self.same_faults = rtol, atol, same_faults
        self.said: dict[str, str | None] = {}
        self.compared = 0

    def first_different(self, names: Sequence[str]) -> str | None:
        """The first of `names` that differs."""
        asked = [name for name in names if name not in self.said]
        if asked:
            ours, theirs = (runner.values(self.inputs, asked) for runner in self.runners)
            judges = {name: self._judge(ours[name], theirs[name]) for name in asked if name in ours and name in theirs}
            self._allow_rounding({name: judge for name, judge in judges.items() if judge.suspects()}, ours)
            self.said.update((name, self._said(name, judges.get(name))) for name in asked)
        return next((name for name in names if self.said[name] is not None), None)

    def _judge(self, a: np.ndarray, b: np.ndarray) -> Judge:
        """What there is to say of two values; nothing of those that cannot be aligned."""
        judge = Judge("", self.rtol, self.atol)
        pair = _aligned(a, b)
        if pair is not None and a.size:
            self.compared += 1
            judge.see(*pair, at=0, same_faults=self.same_faults)
        return judge

    def _allow_rounding(self, judges: Mapping[str, Judge], values: Mapping[str, np.ndarray]) -> None:
        """Let judges tolerate what rounding moves in the reference's values."""
        if not judges:
            return
        inputs = shaken(self.inputs, self.rtol, np.random.default_rng(0))
        for name, moved in self.runners[0].values(inputs, list(judges)).items():
            if moved.shape == values[name].shape:
                with np.errstate(invalid="ignore"):
                    judges[name].allow(np.abs(values[name].astype(np.float64) - moved))

    @staticmethod
    def _said(name: str, judge: Judge | None) -> str | None:
        result = None if judge is None else judge.result()
        if result is None or result.equal or not result.compared:
            return None
        return f"'{name}' {result.problem or f'({result.error:.2g} of its scale)'}"


def _aligned(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The two with equal shapes, the reference's zero channels left out if need be; None when they cannot be."""
    if a.ndim != b.ndim:
        return None
    differing = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
    if not differing:
        return a, b
    axis = differing[0]
    alive = np.flatnonzero(a.any(axis=tuple(other for other in range(a.ndim) if other != axis)))
    if len(differing) > 1 or len(alive) != b.shape[axis]:
        return None
    return a.take(alive, axis=axis), b
