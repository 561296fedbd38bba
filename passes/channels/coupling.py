"""What the rules of several families share: facets that meet by broadcasting or by concatenation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Op
from graphprune.passes.channels.labels import Labels, Mask
from graphprune.passes.channels.value import Facet, Value, spread

#: What an operand says of zeros, aligned to the result; None where it has no such channels, True where it has none and
#: is zero.
Zero = Mask | bool | None
Combine = Callable[[Sequence[Zero]], "Mask | bool"]


def all_zero(zeros: Sequence[Zero]) -> Mask | bool:
    """The result is zero where all operands are (sums, maxima)."""
    result: Mask | bool = True
    for zero in zeros:
        result = False if zero is None else result & zero
    return result


def any_zero(zeros: Sequence[Zero]) -> Mask | bool:
    """The result is zero where one operand is (products)."""
    result: Mask | bool = False
    for zero in zeros:
        if zero is not None:
            result = result | zero
    return result


def first_zero(zeros: Sequence[Zero]) -> Mask | bool:
    """The result is zero where the first operand is (quotients, activations with f(0) = 0)."""
    return False if zeros[0] is None else zeros[0]


def never_zero(zeros: Sequence[Zero]) -> bool:
    """The result is not zero where the operands are (sigmoid, exp, a constant added)."""
    return False


@dataclass
class _Meeting:
    """Facets of several operands that differ along common dimensions."""

    dims: set[int]
    facets: list[tuple[int, Facet]]

    def of(self, operand: int) -> list[Facet]:
        return [facet for index, facet in self.facets if index == operand]


def _meetings(aligned: Sequence[Sequence[Facet]]) -> list[_Meeting]:
    found: list[_Meeting] = []
    for operand, facets in enumerate(aligned):
        for facet in facets:
            merged = _Meeting(set(facet.dims), [(operand, facet)])
            apart = []
            for meeting in found:
                if meeting.dims & merged.dims:
                    merged = _Meeting(meeting.dims | merged.dims, meeting.facets + merged.facets)
                else:
                    apart.append(meeting)
            found = [*apart, merged]
    return found


def _at_full_size(labels: Labels, meeting: _Meeting) -> Labels:
    """One facet's labels, laid out along all dimensions along which one that it meets differs."""
    if all(facet.labels.shape == labels.shape for _, facet in meeting.facets):
        return labels
    return np.broadcast_arrays(labels, *(facet.labels for _, facet in meeting.facets))[0]


def align(value: Value, rank: int) -> list[Facet]:
    """The value's facets with leading dimensions added, as broadcasting does."""
    if rank == value.rank:
        return list(value.facets)
    lead = (1,) * (rank - value.rank)
    return [f.map(lambda array: array.reshape(lead + array.shape)) for f in value.facets]


def broadcast(analysis: Analysis, op: Op, values: Sequence[Value], combine: Combine) -> Value:
    """Element-wise: labels that meet at a position are united (residual add, gate, scale).

    1. Facets that differ along common dimensions are united position by position.
    2. Where an operand has a real size along such a dimension but nothing that could be cut there,
       the channels of the others are frozen; if they differ along more dimensions, they are united along it instead.
    3. Facets along different dimensions (a gate over space and one over channels) stay apart.
    4. An operand that has no channels there, and is known to be zero, is zero at every position.
    """
    shape = op.shape
    rank = len(shape)
    aligned = [[analysis.compress(facet) for facet in align(value, rank)] for value in values]
    if any(len(facet.dims) > 1 for own in aligned for facet in own):
        aligned = _kept_apart(analysis, op, aligned, values)
    facets = []
    for meeting in _meetings(aligned):
        labels = meeting.facets[0][1].labels
        for _, other in meeting.facets[1:]:
            analysis.unite(labels, other.labels)  # case 1
        labels = _at_full_size(labels, meeting)
        zeros: list[Zero] = []
        for index, value in enumerate(values):
            own = meeting.of(index)
            if own:
                zeros.append(reduce(np.logical_or, [spread(f.zero, labels.shape) for f in own]))
            else:
                zeros.append(True if _is_zero(value) else None)  # case 4
            sizes = (1,) * (rank - value.rank) + value.shape
            if not own and any(sizes[dim] > 1 for dim in meeting.dims):  # case 2
                _freeze(analysis, labels, meeting, values, op, "meets a tensor that cannot be cut")
        facets.append(Facet(labels, spread(combine(zeros), labels.shape)))
    return Value(shape, tuple(facets), constant=all(value.constant for value in values))


def _kept_apart(
    analysis: Analysis, op: Op, aligned: Sequence[list[Facet]], values: Sequence[Value]
) -> list[list[Facet]]:
    """Operands whose channels, if they differ along several dimensions, do so no more where another has none.

    Example: k numbers for each of C channels, times k literals. The C channels stay apart, with k numbers each.

    1. The other has a real size along some of these dimensions, and nothing there that could be cut.
    2. What could be cut there is a parameter: it stays whole where that leaves more channels free to go.
    """
    rank = len(op.shape)
    found = [list(own) for own in aligned]
    for index, own in enumerate(aligned):
        for facet in own:
            for other, value in enumerate(values):
                sizes = (1,) * (rank - value.rank) + value.shape
                along = [dim for dim in facet.dims if sizes[dim] > 1]
                if other == index or not along or len(along) == len(facet.dims):
                    continue
                theirs = [f for f in found[other] if set(f.dims) & set(along)]
                if theirs and not (value.constant and _frees_more(analysis, facet, theirs, along)):
                    continue
                for each in theirs:  # case 2
                    analysis.freeze(each, op, "is the same for all channels")
                found[other] = [f for f in found[other] if not any(f is each for each in theirs)]
                analysis.unite(facet.labels, facet.labels[tuple(_first(d in along) for d in range(rank))])
    return [[analysis.compress(facet) for facet in own] for own in found]


def _first(only: bool) -> slice:
    return slice(0, 1) if only else slice(None)


def _frees_more(analysis: Analysis, facet: Facet, theirs: Sequence[Facet], along: Sequence[int]) -> bool:
    """Does uniting a facet `along` some of its dimensions leave more free channels than meeting others there does?"""
    met = np.broadcast_arrays(facet.labels, *(other.labels for other in theirs))
    last = range(-len(along), 0)
    own, *others = (np.moveaxis(labels, along, last) for labels in met)
    apart = int(np.prod(own.shape[own.ndim - len(along) :]))
    united = own.reshape(-1, apart)
    meeting = np.concatenate([rows.reshape(-1, apart) for rows in (own, *others)]).T
    return analysis.free_classes(united) > analysis.free_classes(meeting)


def _is_zero(value: Value) -> bool:
    return value.data is not None and value.zero_point is None and not np.any(value.data)


def _freeze(
    analysis: Analysis, labels: Labels, meeting: _Meeting, values: Sequence[Value], op: Op, reason: str
) -> None:
    if all(values[index].constant for index, _ in meeting.facets):
        analysis.space.freeze(labels, None)
    else:
        analysis.freeze(labels, op, reason)


def concatenate(analysis: Analysis, op: Op, values: Sequence[Value], dim: int) -> Value:
    """Join along `dim`: channels along it follow one another; along other dimensions they are united."""
    shape = op.shape
    rank = len(shape)
    dim %= rank
    facets = []
    for meeting in _meetings([value.facets for value in values]):
        if dim not in meeting.dims:
            facets.append(_united_across(analysis, op, values, meeting, shape))
            continue
        parts, zeros = [], []
        others = meeting.dims - {dim}
        for index, value in enumerate(values):
            full = tuple(n if d == dim or d in others else 1 for d, n in enumerate(value.shape))
            own = meeting.of(index)
            if own:
                for facet in own[1:]:
                    analysis.unite(own[0].labels, facet.labels)
                parts.append(np.broadcast_to(own[0].labels, full))
                zeros.append(np.broadcast_to(own[0].zero, full))
            else:  # a part that cannot be cut: one frozen label for all of it
                label = analysis.space.fresh(1)
                analysis.space.freeze(label, None)
                parts.append(np.broadcast_to(label.reshape((1,) * rank), full))
                zeros.append(np.zeros(full, dtype=np.bool_))
        facets.append(Facet(np.concatenate(parts, axis=dim), np.concatenate(zeros, axis=dim)))
    return Value(shape, tuple(facets), constant=all(value.constant for value in values))


def _united_across(
    analysis: Analysis, op: Op, values: Sequence[Value], meeting: _Meeting, shape: tuple[int, ...]
) -> Facet:
    labels = meeting.facets[0][1].labels
    zero: Mask | bool = True
    for _, facet in meeting.facets:
        analysis.unite(labels, facet.labels)
        zero = zero & facet.zero
    for index, value in enumerate(values):
        if not meeting.of(index):
            zero = False
            if any(value.shape[d] > 1 for d in meeting.dims):
                _freeze(analysis, labels, meeting, values, op, "is joined to a tensor that cannot be cut")
    labels = _at_full_size(labels, meeting)
    return Facet(labels, spread(zero, labels.shape))
