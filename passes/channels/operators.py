"""Operators in the words of their rules, and rules: what the front ends hand to the analysis."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value

if TYPE_CHECKING:
    from graphprune.passes.channels.analysis import Analysis


_RANDOM = re.compile(r"Random|Bernoulli$|Multinomial$|aten\.(rand|bernoulli|normal|multinomial|poisson)")


def is_random(kind: str) -> bool:
    """Does an operator of that kind (`aten.rand_like.default`, `RandomNormalLike`) give other numbers every time?"""
    return _RANDOM.match(str(kind)) is not None  # which in a damaged file is no text


@dataclass(frozen=True)
class Op:
    """One operator of a network, in the words of its rule.

    Attributes:
        kind: name in its own vocabulary, for messages (`aten.conv2d.default`, `Conv`).
        name: the node's name in its graph.
        where: the user's source line, or the node's name where there is none.
        inputs: values by the rule's argument names; None where an optional one is absent; a list
            where the operator takes a list (concatenation).
        attrs: everything that is not a value, by the rule's argument names.
        out_shapes: sizes of each result.
        unread: which of the results nobody reads, where that is known.
    """

    kind: str
    name: str
    where: str
    inputs: Mapping[str, Any]
    attrs: Mapping[str, Any]
    out_shapes: tuple[tuple[int, ...], ...]
    unread: frozenset[int] = frozenset()

    def value(self, name: str) -> Value:
        """The input of that name; it must be there."""
        found = self.inputs[name]
        assert isinstance(found, Value), f"{self.kind} {self.name}: {name}"
        return found

    def optional(self, name: str) -> Value | None:
        """The input of that name, or None."""
        found = self.inputs.get(name)
        return found if isinstance(found, Value) else None

    def values(self) -> list[Value]:
        """All inputs, lists flattened, in order."""
        return list(self._values)

    @cached_property
    def _values(self) -> tuple[Value, ...]:
        flat: list[Value] = []
        for item in self.inputs.values():
            if isinstance(item, Value):
                flat.append(item)
            elif isinstance(item, list):
                flat.extend([v for v in item if isinstance(v, Value)])
        return tuple(flat)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the first result."""
        return self.out_shapes[0]


@dataclass(frozen=True)
class Cut:
    """What a plan removes around one operator: the view that a rule's `resize` gets.

    Attributes:
        inputs: for each input by name, per dimension, which positions stay (absent: all).
        outputs: the same for each result.
    """

    inputs: Mapping[str, Mapping[int, Mask]]
    outputs: Sequence[Mapping[int, Mask]]

    def kept(self, name: str, dim: int) -> Mask | None:
        """Which positions of an input stay along `dim`, or None when all do."""
        return self.inputs.get(name, {}).get(dim)


@dataclass(frozen=True)
class Recount:
    """Indices along a dimension that got shorter: what `resize` gives for an argument that picks positions.

    Attributes:
        before: the indices, not negative.
        kept: which positions stay along the dimension that they pick from.
        picked: dimension of the indices -> which entries stay along it; all others are positions that stay.
    """

    before: NDArray[np.int64]
    kept: Mask
    picked: Mapping[int, Mask] = field(default_factory=dict)

    @property
    def after(self) -> NDArray[np.int64]:
        """The entries that stay, counted among the positions that stay."""
        left = self.before
        for dim, mask in self.picked.items():
            left = np.compress(mask, left, axis=dim)
        found: NDArray[np.int64] = (np.cumsum(self.kept) - 1)[left]
        return found

    @property
    def period(self) -> int:
        """After how many positions it repeats what stays: samples that are laid out one after another do."""
        size = len(self.kept)
        steps = [step for step in range(1, size + 1) if size % step == 0]
        return next(step for step in steps if not np.any(self.kept.reshape(-1, step) != self.kept[:step]))


Couple = Callable[["Analysis", Op], "list[Value]"]
Resize = Callable[[Op, Cut], dict[str, Any]]
Shapes = Callable[[Op], Sequence[tuple[int, ...]]]


@dataclass(frozen=True)
class Like:
    """A standard operator whose first result has the sizes that all results of another one have (ONNX).

    Attributes:
        kind: the standard operator.
        inputs: which of the other's inputs it takes, in its own order.
        numbers: inputs whose type of numbers the results have: the first of them that the node has.
        arrange: turns the sizes of the input at a position into those that the standard operator takes, by attributes.
        restore: turns the sizes of its result back.
    """

    kind: str
    inputs: tuple[int, ...] | slice = (0,)
    numbers: tuple[int, ...] = (0,)
    arrange: "Callable[[Mapping[str, Any], int, tuple[int, ...]], tuple[int, ...]] | None" = None
    restore: "Callable[[Mapping[str, Any], tuple[int, ...]], tuple[int, ...]] | None" = None


@dataclass(frozen=True)
class Binding:
    """How one vocabulary spells the arguments of a rule.

    Attributes:
        names: rule's argument name -> the vocabulary's own name where they differ: of an argument (torch), of an
            attribute (ONNX).
        inputs: the rule's names of the inputs in order; a name that ends in `...` takes all the rest. Inputs of a torch
            operator are its tensors, which without this go by the names of its schema.
        fixed: arguments that the operator's name itself implies, or that have this value where they are left out.
        needs: inputs whose numbers the rule reads (ONNX); where they are computed, the operator is unknown.
        covers: does the rule hold for this form of the operator? Where not, the operator is unknown.
        read: turns the vocabulary's attributes into the rule's, given the operator's input values.
        write: turns what `resize` returned back into the vocabulary's attributes (given the old ones).
        like: of an operator that is not the standard's (ONNX): one of it whose results have the same sizes.
        to_onnx: of a torch operator, what writes it in an ONNX file: a function of its arguments, as
            `torch.onnx.export` takes it in `custom_translation_table`. None where the exporter knows the operator.
        kernels: of an ONNX operator, the shared library that onnxruntime finds its kernel in. None where it has one.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    covers: "Callable[[Op], bool] | None" = None
    read: "Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]] | None" = None
    write: "Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]] | None" = None
    like: Like | None = None
    to_onnx: "Callable[..., Any] | None" = None
    kernels: str | None = None


@dataclass(frozen=True)
class Rule:
    """One operator family: its coupling, and how its arguments follow a cut.

    Attributes:
        name: the family's name.
        couple: labels in, labels out.
        resize: new values of the arguments that mirror sizes; None when there are none.
        aten: torch operator (`conv2d`, or `max.other` for one overload; of another library `mylib::name`) -> binding.
        onnx: ONNX operator type (of another domain `com.example.Name`) -> binding.
        sums: for an operator that sums over the channels of its input, the dimension of the result along which
            the bias lies; over no channels, the bias is the result.
        pointwise: treats every position alone (a constant map stays one); may depend on the operator's arguments.
        moves: gives elements of its input as they are, so that the zero point of a quantized tensor stays what it was.
        measures: inputs of which it reads the sizes or the type alone, so that it computes nothing from their numbers.
        quantized: reads and sets zero points itself.
        shapes: sizes of the results, for ONNX operators that onnx cannot infer them of and in files that do not say
            them; the operator that it is given has none yet.
    """

    name: str
    couple: Couple
    resize: Resize | None = None
    aten: Mapping[str, Binding] = field(default_factory=dict)
    onnx: Mapping[str, Binding] = field(default_factory=dict)
    sums: "Callable[[Op], int] | None" = None
    pointwise: "bool | Callable[[Op], bool]" = False
    moves: bool = False
    measures: tuple[str, ...] = ()
    quantized: bool = False
    shapes: "Shapes | None" = None

    def is_pointwise(self, op: Op) -> bool:
        """Does this operator treat every position alone?"""
        return self.pointwise(op) if callable(self.pointwise) else self.pointwise

    def is_constant(self, op: Op) -> bool:
        """Are the numbers that this operator reads made of parameters, buffers and literals alone?"""
        return computes_constant(replace(op, inputs={k: v for k, v in op.inputs.items() if k not in self.measures}))


def computes_constant(op: Op) -> bool:
    """Are all inputs made of parameters, buffers and literals alone, and the results the same every time?"""
    return not is_random(op.kind) and all(value.constant for value in op.values())


def without_zero_points(op: Op, rule: Rule) -> tuple[Op, Rule]:
    """An operator on quantized tensors that knows nothing of it, in words that it understands.

    1. It moves elements of tensors with one zero point: the results have that one.
    2. Else an element at the zero point is no zero to it.
    """
    points = {value.zero_point for value in op.values() if value.facets}
    if rule.moves and len(points) == 1:
        couple, point = rule.couple, points.pop()

        def keeping(analysis: "Analysis", op: Op) -> list[Value]:
            return [replace(value, zero_point=point) for value in couple(analysis, op)]

        return op, replace(rule, couple=keeping)

    def plain(item: Any) -> Any:
        if isinstance(item, list):
            return [plain(one) for one in item]
        if not isinstance(item, Value) or item.zero_point is None:
            return item
        return replace(item, facets=tuple(f.with_zero(False) for f in item.facets), zero_point=None)

    return replace(op, inputs={name: plain(item) for name, item in op.inputs.items()}), rule
