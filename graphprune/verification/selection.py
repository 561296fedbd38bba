"""Two models that select, compared in front of the selection, and the selections by themselves.

A detector that finds nothing on noise gives nothing to compare; one that finds something gives little of what it has
computed; and where two scores are next to equal, rounding alone may put another box first. Three questions are asked:

    1. Are the values equal that enter the part that selects?
    2. Are the outputs equal - and if not, are they once both selections are given the reference's values?
    3. Do both selections make the same of random values, with which they do select something?
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from graphprune.passes.errors import ModelLoadError, UnsupportedModelError
from graphprune.passes.onnx.decoding import DISCRETE, Selection, find_selection, selecting_part
from graphprune.passes.onnx.wire import WireError, outline
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, OnnxSource, open_session

__all__ = ["SelectionPair", "pair_selections", "random_values"]

Values = Mapping[str, np.ndarray]
Types = Mapping[str, np.dtype]
_LOOSE = 0.4  # of the spread of coordinates: such boxes overlap by a third to nearly all of their area
_FAILURES: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, KeyError, ModelLoadError)


@dataclass(frozen=True)
class _Side:
    """A model, its graph without the weights, and the part that selects."""

    source: OnnxSource
    model: onnx.ModelProto
    selection: Selection | None

    @cached_property
    def watched(self) -> tuple[str, ...]:
        """The values to look at: those that enter the selection, and are neither inputs nor outputs of the model."""
        if self.selection is None:
            return ()
        outside = {value.name for value in (*self.model.graph.input, *self.model.graph.output)}
        names = dict.fromkeys((*self.selection.fronts, *self.selection.sizes))
        return tuple(name for name in names if name not in outside)

    def part(self, given: Values) -> ort.InferenceSession:
        """A session on the selection alone."""
        assert self.selection is not None
        types = {name: array.dtype for name, array in given.items()}
        part = selecting_part(self.selection, self.model, types)
        folder = None if isinstance(self.source, bytes) else Path(self.source).parent
        return open_session(part.SerializeToString(), optimize=False, name="the part that selects", folder=folder)


class SelectionPair:
    """What two ONNX models select from what.

    Attributes:
        fronts: pairs of values that enter the selections in the same role, the reference's name first.
        outputs: the reference's outputs that come out of its selection.
        complete: whether all that enters the candidate's selection is known by its role in the reference's.
    """

    def __init__(self, first: _Side, second: _Side, kinds: frozenset[str]) -> None:
        self._sides, self._kinds = (first, second), kinds
        self._roles = _roles(first.selection, second.selection)
        fronts = set() if second.selection is None else set(second.selection.fronts)
        self.fronts = tuple((ours, theirs) for theirs, ours in self._roles.items() if theirs in fronts)
        self.outputs = () if first.selection is None else first.selection.outputs
        self._theirs = _same_outputs(first.model.graph, second.model.graph)
        needed = () if second.selection is None else (*second.selection.fronts, *second.selection.sizes)
        theirs = () if second.selection is None else second.selection.outputs
        expected = {self._theirs.get(name) for name in self.outputs}
        self.complete = set(needed) <= self._roles.keys() and set(theirs) == expected
        self._parts: tuple[ort.InferenceSession, ort.InferenceSession] | None = None

    def against(self, candidate: Any) -> "SelectionPair":
        """The same reference with another candidate, an ONNX file or the content of one."""
        second = _side(candidate, self._kinds)
        if second is None:
            raise UnsupportedModelError("the model to compare with is no readable ONNX model")
        return SelectionPair(self._sides[0], second, self._kinds)

    @property
    def models(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """Both models; weights of files are left out."""
        return self._sides[0].model, self._sides[1].model

    @property
    def watched(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the values that each model is to give besides its outputs."""
        return self._sides[0].watched, self._sides[1].watched

    def describe(self, front: str) -> str:
        """A value that enters, and what it enters, in words."""
        selection = self._sides[0].selection
        assert selection is not None
        return f"{front} (enters {selection.of(front)})"

    @property
    def kind(self) -> str:
        """The operator that selects: the first one."""
        selection = self._sides[0].selection
        return "" if selection is None else selection.nodes[0].op_type

    def select(self, values: Values, types: Types) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
        """What both selections make of the same values of the reference; None where they cannot be run alone.

        Args:
            values: by the reference's names.
            types: what the candidate computes in, by its names; the values are rounded to that for both.
        """
        try:
            theirs = {name: values[ours].astype(types[name], copy=False) for name, ours in self._roles.items()}
            rounded = {ours: theirs[name] for name, ours in self._roles.items()}
            ours = {name: rounded.get(name, values[name]).astype(values[name].dtype) for name in self._entering}
            if self._parts is None:
                self._parts = self._sides[0].part(ours), self._sides[1].part(theirs)
            first, second = self._parts
            their_names = [self._theirs[name] for name in self.outputs]
            found = first.run(list(self.outputs), ours), second.run(their_names, theirs)
        except _FAILURES:
            return None
        return tuple(dict(zip(self.outputs, map(np.asarray, one), strict=True)) for one in found)  # type: ignore[return-value]

    @cached_property
    def are_the_same(self) -> bool:
        """Are both selections the same operators with the same literals, so that equal values give equal outputs?"""
        first, second = (side.selection for side in self._sides)
        if first is None or second is None or not self.complete:
            return False
        ours = first.described({name: name for name in self._entering})
        return ours is not None and ours == second.described(self._roles)

    def has_same(self, values: Values, types: Types) -> bool:
        """Do both select from numbers of the same types?"""
        return all(values[ours].dtype == types[theirs] for theirs, ours in self._roles.items())

    @property
    def _entering(self) -> tuple[str, ...]:
        selection = self._sides[0].selection
        assert selection is not None
        return tuple(dict.fromkeys((*selection.fronts, *selection.sizes)))


def pair_selections(first: Any, second: Any, kinds: frozenset[str] = DISCRETE) -> SelectionPair | None:
    """The selections of two models; None unless both are ONNX files, or contents of some, that can be read."""
    sides = [_side(model, kinds) for model in (first, second)]
    return None if sides[0] is None or sides[1] is None else SelectionPair(sides[0], sides[1], kinds)


def _side(model: Any, kinds: frozenset[str]) -> _Side | None:
    if not isinstance(model, str | bytes | os.PathLike):
        return None
    try:
        if isinstance(model, bytes):
            proto = onnx.load_model_from_string(model)
        else:
            proto = onnx.load_model_from_string(outline(model, location=Path(model).name))
    except (DecodeError, WireError, OSError, ValueError):  # said where it is opened
        return None
    return _Side(model, proto, find_selection(proto.graph, kinds))


def _same_outputs(first: onnx.GraphProto, second: onnx.GraphProto) -> dict[str, str]:
    """The second graph's output for each of the first's: by name where the names are the same, else by place."""
    ours, theirs = ([value.name for value in graph.output] for graph in (first, second))
    if set(ours) == set(theirs):
        return dict(zip(ours, ours, strict=True))
    return dict(zip(ours, theirs, strict=False))


def _roles(first: Selection | None, second: Selection | None) -> dict[str, str]:
    """What enters the second selection, and what plays its role in the first.

    1. All have the same names: it is the name.
    2. Both consist of the same operators: a role is a place at an operator.
    3. They do not: it is a name where there is one, else a place at an operator of which both have as many.
    """
    if first is None or second is None:
        return {}
    same = {name: name for name in (*second.fronts, *second.sizes) if name in (*first.fronts, *first.sizes)}
    if len(same) == len(second.fronts) + len(second.sizes):  # 1
        return same
    if first.kinds == second.kinds:  # 2
        found = _by_place(first.enters, second.enters)
        if len(first.sizes) == len(second.sizes):
            found |= dict(zip(second.sizes, first.sizes, strict=True))
        if found.keys() >= {*second.fronts, *second.sizes}:
            return found
    return _by_place(first.by_kind, second.by_kind) | same  # 3


def _by_place(first: Mapping[Any, str], second: Mapping[Any, str]) -> dict[str, str]:
    """The first's names for those of the second at the same places, where there is one and no other."""
    found: dict[str, set[str]] = {}
    for place, name in second.items():
        found.setdefault(name, set()).add(first.get(place, ""))
    return {name: min(ours) for name, ours in found.items() if len(ours) == 1 and "" not in ours}


def random_values(values: Values, names: Sequence[str], seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Values like those given, but random: such that something is selected from them.

    What lies between 0 and 1 is taken for scores, and stays in there: many large ones, or few. Other numbers stay as
    they are; or get both signs; or become alike, as boxes are that overlap.

    Args:
        values: by name.
        names: of those that are to change; only floating-point numbers do.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    for power, change in _DRAWS:
        found = dict(values)
        for name in names:
            array = values[name]
            if not np.issubdtype(array.dtype, np.floating) or not array.size:
                continue
            array = np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0)
            is_scores = 0 <= array.min() < array.max() <= 1
            drawn = rng.uniform(0, 1, array.shape) ** power if is_scores else change(array, rng)
            found[name] = drawn.astype(values[name].dtype)
        yield found


def _kept(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return array


def _both_signs(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    most = float(np.abs(array).max()) or 1.0
    return rng.uniform(-most, most, array.shape)


def _alike(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Everything along the longest dimension nearly what one place of it is."""
    if not array.ndim:
        return array
    axis = int(np.argmax(array.shape))
    one = array.take([array.shape[axis] // 2], axis=axis)
    return one + _LOOSE * float(one.std()) * rng.uniform(-1, 1, array.shape)


#: How random values are drawn: the power of scores, and what becomes of other numbers.
_DRAWS = ((1, _kept), (8, _both_signs), (64, _kept), (64, _both_signs), (1, _alike), (8, _alike))
