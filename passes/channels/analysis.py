"""Abstract interpretation of a network on channel labels.

A front end (torch.fx or ONNX) walks its graph and hands every operator here as an `Op`; the rule of the
operator's family says which labels are united, which are contracted (summed over) and which come out.

The same run answers one of two questions, told apart only by what `Facet.zero` starts from:

* *What may be removed exactly?* Parameters start as "zero once their group is removed". A group is
  exact when every contraction of its channels meets zeros: on the weight's side or on the value's.
* *What is dead already?* Parameters start from the zeros in their numbers. A group is dead when every
  contraction of its channels meets zeros now.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels.labels import Labels, LabelSpace, Mask, keep_dims, varying
from graphprune.passes.channels.operators import Binding as Binding
from graphprune.passes.channels.operators import Cut as Cut
from graphprune.passes.channels.operators import Op as Op
from graphprune.passes.channels.operators import Recount as Recount
from graphprune.passes.channels.operators import Rule as Rule
from graphprune.passes.channels.operators import computes_constant, is_random, without_zero_points
from graphprune.passes.channels.repeats import Repeats
from graphprune.passes.channels.segments import Segments
from graphprune.passes.channels.value import Facet, Value, spread
from graphprune.passes.channels.zeros import zero_slices


def _cut_to(facet: Facet, dims: tuple[int, ...]) -> Facet:
    """The facet at size 1 along all dimensions but `dims`; a slice is zero where all of it is."""
    if dims == facet.dims:
        return facet
    others = tuple([d for d in range(facet.zero.ndim) if d not in dims])
    zero: Mask = np.asarray(facet.zero.all(axis=others, keepdims=True), dtype=np.bool_)
    return Facet(keep_dims(facet.labels, dims), zero)


_ALL_AT_ONCE = "its channels can only go all at once"


@dataclass(frozen=True)
class Axis:
    """Labels and zeros along one dimension: 1-D arrays of its size."""

    labels: Labels
    zero: Mask

    def facet(self, rank: int, dim: int) -> Facet:
        """The facet of a tensor of that rank which carries these channels along `dim`."""
        spread = tuple(-1 if d == dim % rank else 1 for d in range(rank))
        return Facet(self.labels.reshape(spread), self.zero.reshape(spread))


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed, and why."""

    reason: str
    channels: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class CostTerm:
    """`factor` x the product of the channels kept along each of `axes`: multiply-accumulates of one operator."""

    name: str
    factor: float
    axes: tuple[Labels, ...]


class Analysis:
    """The state of one run: the label space and what the rules reported."""

    def __init__(self, whole_heads: bool = False) -> None:
        """`whole_heads`: attention loses heads, instead of the same channel of every head."""
        self.whole_heads = whole_heads
        #: In which ways, of those that there are, the network is analyzed; a plan notes them.
        self.options = {"whole_heads": whole_heads}
        self.space = LabelSpace()
        self.carriers: dict[tuple[str, int], Labels] = {}
        self.parameter_shapes: dict[str, tuple[int, ...]] = {}
        self.output_dims: dict[str, int] = {}
        self.terms: list[CostTerm] = []
        self._harmful: list[tuple[Labels, str]] = []
        self._shapely: list[Facet] = []
        self._declared: list[Labels] = []
        self._alive: list[tuple[Labels, Op]] = []
        # Results that no input reaches. `Value.constant` says more: that nothing in it may go by itself.
        self._fixed: dict[int, Value] = {}
        self.repeats = Repeats()

    # -- leaves ---------------------------------------------------------------------------------

    def parameter(self, name: str, shape: tuple[int, ...], data: NDArray[Any] | None = None) -> Value:
        """A parameter, buffer or literal: one facet for each dimension longer than 1.

        Args:
            name: fully qualified name; the same name gives the same labels again.
            shape: its sizes.
            data: its numbers; given, `zero` speaks of them, else of the removed group.
        """
        facets = []
        self.parameter_shapes[name] = shape
        zeros = [np.ones(size, dtype=np.bool_) for size in shape] if data is None else zero_slices(data)
        for dim, size in enumerate(shape):
            if size <= 1:
                continue
            labels = self.carriers.get((name, dim))
            if labels is None:
                labels = self.carriers[(name, dim)] = self.space.fresh(size)
            held = tuple(size if d == dim else 1 for d in range(len(shape)))
            facets.append(Facet(labels.reshape(held), zeros[dim].reshape(held)))
        return Value(shape, tuple(facets), constant=True, data=data, parameter=name)

    # -- statements of rules ----------------------------------------------------------------------

    def unite(self, left: Labels, right: Labels) -> None:
        """The channels that meet can only go together."""
        self.space.unite(left, right)

    def freeze(self, what: "Facet | Labels", op: Op | str, reason: str) -> None:
        """The channels cannot be removed; `reason` is shown with the operator and its source line."""
        labels = what.labels if isinstance(what, Facet) else what
        text = op if isinstance(op, str) else f"{op.kind} at {op.where}"
        self.space.freeze(labels, f"{reason}: {text}")

    def freeze_value(self, value: Value, op: Op, reason: str) -> None:
        """All channels of a value are frozen; literals and parameters that name no channel are just pinned."""
        for facet in value.facets:
            if value.constant:
                self.space.freeze(facet.labels, None)
            else:
                self.freeze(facet, op, reason)

    def contract(self, labels: Labels, zero: Mask, op: Op, why: str = "sums over channels that are not zero") -> None:
        """An operator sums over channels: removing them is exact where `zero` says that they add nothing."""
        self._declared.append(labels.ravel())
        zero = spread(zero, labels.shape)
        if np.count_nonzero(zero) < zero.size:
            self._harmful.append((labels[~zero], f"{why}: {op.kind} at {op.where}"))

    def inexact(self, labels: Labels, op: Op, why: str) -> None:
        """Removing these channels changes a statistic of those that stay."""
        self._declared.append(labels.ravel())
        self._harmful.append((labels.ravel(), f"{why}: {op.kind} at {op.where}"))

    def outputs_along(self, value: Value | None, dim: int) -> None:
        """Where `value` is a parameter: its output channels lie along `dim`. Unsaid, they lie along the first."""
        if value is not None and value.parameter is not None and value.rank:
            self.output_dims.setdefault(value.parameter, dim % value.rank)

    def drop(self, labels: Labels) -> None:
        """These channels leave the data here, and their removal needs nothing more (a slice that skips them)."""
        self._declared.append(labels.ravel())

    def cost(self, op: Op, factor: float, axes: Sequence[Labels]) -> None:
        """The operator does `factor` x the product of the kept channels of each axis multiply-accumulates.

        Counted for the whole batch of the example inputs.
        """
        self.terms.append(CostTerm(op.name, factor, tuple(axis.ravel() for axis in axes)))

    def rectangular(self, facet: Facet) -> Facet:
        """A facet of an inner layout of an operator, whose cuts must be whole slices too."""
        self._shapely.append(facet)
        return facet

    def settle_facet(self, facet: Facet) -> Facet:
        """The facet cut along one dimension only, for operators that treat its dimensions differently."""
        return _cut_to(facet, self._make_rectangular(facet.labels))

    def compress(self, facet: Facet) -> Facet:
        """The facet at size 1 along the dimensions along which its channels differ no more."""
        dims = facet.dims
        if len(dims) < 2:
            return facet
        varying = self.space.varies(facet.labels)
        return facet if varying == dims or not varying else _cut_to(facet, varying)

    def axis(self, value: Value | None, dim: int) -> "Axis | None":
        """The channels along one dimension of a value, or None where it cannot be cut.

        Facets that differ along `dim` and others are settled first; several facets along `dim` are united.
        """
        if value is None:
            return None
        dim %= value.rank
        found: Axis | None = None
        for facet in value.along(dim):
            settled = self.settle_facet(facet)
            if settled.dims != (dim,):
                continue
            axis = Axis(settled.labels.ravel(), settled.zero.ravel())
            if found is not None:
                self.unite(found.labels, axis.labels)
                axis = Axis(found.labels, np.logical_or(found.zero, axis.zero))
            found = axis
        return found

    # -- running ------------------------------------------------------------------------------------

    def run(self, rule: Rule | None, op: Op, *, macs: float | None = None) -> list[Value]:
        """Apply a rule (None: the operator is unknown), then check that no label got lost on the way.

        What is done once, or has been done before, costs nothing.

        Args:
            rule: that of the operator's family.
            op: the operator.
            macs: its multiply-accumulates, where they are not what the rule says.
        """
        counted = len(self.terms)
        results = self._unknown(op) if rule is None else self._apply(rule, op)
        if macs is not None:
            del self.terms[counted:]
            self.cost(op, macs, [])
        if self._is_fixed(op):
            self._fixed.update({id(value): value for value in results})
            del self.terms[counted:]
        elif self.repeats.see(rule, op, results):
            del self.terms[counted:]
        return results

    def _unknown(self, op: Op) -> list[Value]:
        for value in op.values():
            self.freeze_value(value, op, "no rule for this operator")
        return [Value(shape, constant=computes_constant(op)) for shape in op.out_shapes]

    def _apply(self, rule: Rule, op: Op) -> list[Value]:
        self._declared = []
        if not rule.quantized and any(value.zero_point is not None for value in op.values()):
            op, rule = without_zero_points(op, rule)
        results = rule.couple(self, op)
        if not rule.is_constant(op):  # a table is constant; what is looked up in it is not
            results = [replace(value, constant=False) for value in results]
        results = [self.normalize(value, op) for value in results]
        results.extend(Value(shape) for shape in op.out_shapes[len(results) :])  # saved statistics and the like
        self._freeze_lost(op, results)
        for value in results:
            self._shapely.extend(facet for facet in value.facets if len(facet.dims) > 1)
        return results

    def _is_fixed(self, op: Op) -> bool:
        """Does an operator compute the same whatever the input is? Then it is done once, and costs nothing."""
        given = op.values()
        return (
            bool(given)
            and not is_random(op.kind)
            and all(value.constant or id(value) in self._fixed for value in given)
        )

    def normalize(self, value: Value, op: Op) -> Value:
        """The value with its facets held at size 1 along every dimension along which classes do not differ."""
        facets = []
        for facet in value.facets:
            roots = self.space.find(facet.labels)
            dims = varying(roots)
            if not dims:
                self._freeze_or_pin(facet, value, op)
                continue
            cut = _cut_to(Facet(roots, facet.zero), dims)
            if self.space.are_pinned(cut.labels):
                continue  # names no channel at all
            facets.append(cut)
            if not value.constant:
                self._alive.append((cut.labels.ravel(), op))
        return replace(value, facets=tuple(self._apart(facets, op)))

    def _apart(self, facets: list[Facet], op: Op) -> list[Facet]:
        """No two facets along one dimension where one is enough.

        1. One of them never goes: the other says how the dimension is cut.
        2. United they would leave fewer classes than one alone (rows and columns of a product, made one dimension):
           the one with fewer is frozen.
        """
        for one, other in combinations(facets, 2):
            if not set(one.dims) & set(other.dims):
                continue
            free = [self.free_classes(facet.labels.reshape(-1, 1)) for facet in (one, other)]
            rows = np.stack([array.ravel() for array in np.broadcast_arrays(one.labels, other.labels)], axis=1)
            if self.free_classes(rows) >= max(*free, 1):
                continue
            less = other if free[0] > free[1] else one
            if min(free):  # case 2
                self.freeze(less, op, "shares a dimension with other channels")
            return self._apart([facet for facet in facets if facet is not less], op)
        return facets

    def _freeze_or_pin(self, facet: Facet, value: Value, op: Op) -> None:
        if value.constant:
            self.space.freeze(facet.labels, None)
        else:
            self.freeze(facet, op, _ALL_AT_ONCE)

    def _freeze_lost(self, op: Op, results: list[Value]) -> None:
        given = [(value, facet) for value in op.values() for facet in value.facets]
        if not given:
            return
        known = Segments([facet.labels for value in results for facet in value.facets] + self._declared)
        every = Segments([facet.labels for _, facet in given])
        lost = ~self.space.among(every.values, known.values)
        if not np.count_nonzero(lost):
            return
        for (value, _), labels, gone in zip(given, every.apart(every.values), every.apart(lost), strict=True):
            reason = None if value.constant else f"its channels end in {op.kind} at {op.where}"
            self.space.freeze(labels[gone], reason)

    # -- the end --------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Make every tensor's cuts whole slices along one dimension; pin what never became a channel."""
        self.space.compress()
        before = -1
        while before != self.space.unions:
            before = self.space.unions
            for facet in self._shapely:
                self._make_rectangular(facet.labels)
        self.space.compress()
        alive = Segments([labels for labels, _ in self._alive])
        roots = self.space.find(alive.values)
        for index in np.flatnonzero(alive.least(roots) == alive.most(roots)).tolist():
            labels, op = self._alive[index]
            self.freeze(labels[:1], op, _ALL_AT_ONCE)
        every = Segments(list(self.carriers.values())).values
        self.space.freeze(every[~self.space.among(every, alive.values)], None)

    def _make_rectangular(self, labels: Labels) -> tuple[int, ...]:
        """Unite along all dimensions but one: the one that leaves the most classes free to go, or the longest.

        Returns the dimensions along which the classes differ then.
        """
        roots = self.space.find(labels)
        dims = varying(roots)
        if len(dims) < 2:
            return dims
        roots = keep_dims(roots, dims)
        best, most = dims[0], -1
        for dim in sorted(dims, key=lambda dim: -labels.shape[dim]):
            count = self.free_classes(np.moveaxis(roots, dim, 0).reshape(roots.shape[dim], -1))
            if count > most:
                best, most = dim, count
        rows = np.moveaxis(roots, best, 0).reshape(roots.shape[best], -1)
        self.space.unite(rows, rows[:, :1])
        return self.space.varies(labels)

    def free_classes(self, rows: Labels) -> int:
        """How many removable classes are left when every row of `rows` is united."""
        trial = LabelSpace()
        names, index = np.unique(rows, return_inverse=True)
        index = index.reshape(rows.shape)
        trial.fresh(len(names))
        trial.freeze(np.flatnonzero(self.space.frozen(names) >= 0), "frozen")
        trial.unite(index, index[:, :1])
        roots = np.unique(trial.find(np.arange(len(names))))
        return int((trial.frozen(roots) < 0).sum())

    def harmful(self) -> tuple[Labels, Labels, list[str]]:
        """Channels whose removal is not exact: (labels, reason index, reasons)."""
        reasons: dict[str, int] = {}
        which = [reasons.setdefault(reason, len(reasons)) for _, reason in self._harmful]
        every = Segments([labels for labels, _ in self._harmful])
        return every.values, np.repeat(np.array(which, dtype=np.int64), every.lengths), list(reasons)
