"""What a slim model costs, counted without building it.

A cost is a sum of terms, each a factor times a product of channel counts:

    cost(kept) = sum over t of  factor_t * product over axes a of t of  n_a(kept)
    n_a(kept)  = channels along axis a that stay = frozen_a + sum over groups g of  members_ag * kept_g

Where the channels of an axis count unequally, members_ag is the sum of what they count.

Multiply-accumulates of a convolution are positions x kernel x n_out x n_in; its parameters the same
without positions. With all n_a in one sparse matrix, a count takes microseconds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """One summand: `factor` times the kept length of each of `axes`.

    Attributes:
        name: operator or parameter that it is of.
        factor: what is the same whatever is kept.
        axes: group id per index, -1 frozen.
        counts: per axis what each index counts; 1 for the axes beyond.
    """

    name: str
    factor: float
    axes: tuple[NDArray[np.int64], ...]
    counts: tuple[Floats, ...] = ()

    def weighted_axes(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """The axes, each with what its indices count."""
        for slot, ids in enumerate(self.axes):
            yield ids, self.counts[slot] if slot < len(self.counts) else np.ones(len(ids))


class Polynomial:
    """A cost as a function of the kept groups."""

    def __init__(self, terms: Sequence[Term], n_groups: int) -> None:
        self.terms = tuple(terms)
        self.names = [term.name for term in terms]
        self._factor = np.array([term.factor for term in terms], dtype=np.float64)
        rows: list[NDArray[np.int64]] = []
        columns: list[NDArray[np.int64]] = []
        members: list[Floats] = []
        frozen: list[float] = []
        term_of: list[int] = []
        position: list[int] = []
        for index, term in enumerate(terms):
            for slot, (axis, counts) in enumerate(term.weighted_axes()):
                row, moves = len(frozen), axis >= 0
                ids = axis[moves]
                rows.append(np.full(len(ids), row))
                columns.append(ids)
                members.append(counts[moves])
                frozen.append(float(counts[~moves].sum()))
                term_of.append(index)
                position.append(slot)
        self._frozen: Floats = np.array(frozen, dtype=np.float64)
        shape = (len(frozen), n_groups)
        if frozen:
            row_index, column_index = np.concatenate(rows), np.concatenate(columns)
            self._members = csr_matrix((np.concatenate(members), (row_index, column_index)), shape=shape)
        else:
            self._members = csr_matrix(shape)
        self._by_group = self._members.T.tocsr()
        # terms x slots -> row of the matrix; rows beyond a term's axes point at a constant 1
        slots = 1 + max(position, default=-1)
        self._rows = np.full((len(terms), slots), len(frozen), dtype=np.int64)
        if frozen:
            self._rows[np.array(term_of), np.array(position)] = np.arange(len(frozen))

    def _lengths(self, kept: NDArray[np.bool_]) -> Floats:
        return np.append(self._frozen + self._members @ kept.astype(np.float64), 1.0)

    def per_term(self, kept: NDArray[np.bool_]) -> Floats:
        """The cost of each term, in the order of `names`."""
        return self._factor * self._lengths(kept)[self._rows].prod(axis=1)

    def __call__(self, kept: NDArray[np.bool_]) -> float:
        """The cost when the groups of `kept` stay; kept: (G,) bool."""
        return float(self.per_term(kept).sum())

    def marginal(self, kept: NDArray[np.bool_]) -> Floats:
        """For every group, what the cost falls by if it alone is removed in addition; (G,).

        Exact for terms of up to two axes. Groups that are not kept get what they would have saved.
        """
        lengths = self._lengths(kept)
        values = lengths[self._rows]
        slope = np.zeros(len(lengths))
        for slot in range(self._rows.shape[1]):
            others = np.delete(values, slot, axis=1).prod(axis=1)
            np.add.at(slope, self._rows[:, slot], self._factor * others)
        gain = np.asarray(self._by_group @ slope[:-1], dtype=np.float64)
        if self._rows.shape[1] > 1:
            gain -= self._second_order(values)
        return gain

    def _second_order(self, values: Floats) -> Floats:
        """A group in two axes of one term is counted twice by the slopes: subtract the product once."""
        total = np.zeros(self._members.shape[1])
        padded = csr_matrix(
            (self._members.data, self._members.indices, np.append(self._members.indptr, self._members.indptr[-1])),
            shape=(self._members.shape[0] + 1, self._members.shape[1]),
        )
        slots = self._rows.shape[1]
        for first in range(slots):
            for second in range(first + 1, slots):
                others = np.delete(values, [first, second], axis=1).prod(axis=1) * self._factor
                both = padded[self._rows[:, first]].multiply(padded[self._rows[:, second]])
                total += np.asarray(both.T @ others).ravel()
        return total


def samples_in(inputs: Iterable[tuple[tuple[int, ...], bool]]) -> int:
    """Samples in a run: the first size that all inputs have in common; those that leave it open know best.

    1, where they do not say it.

    Args:
        inputs: for each the sizes, and whether the first of them is open. One of less than two dimensions says nothing.
    """
    firsts: dict[bool, set[int]] = {True: set(), False: set()}
    for shape, is_open in inputs:
        if len(shape) > 1:
            firsts[is_open].add(shape[0])
    found = firsts[True] or firsts[False]
    return max(1, *found) if len(found) == 1 else 1


class CostModel:
    """Multiply-accumulates (of one sample) and parameters of the slim model, as functions of the kept groups.

    Attributes:
        dense: cost of the dense model by unit, "macs" and "params".
    """

    def __init__(
        self, macs: Sequence[Term], params: Sequence[Term], n_groups: int, dense: Mapping[str, float] | None = None
    ) -> None:
        self._macs = Polynomial(macs, n_groups)
        self._params = Polynomial(params, n_groups)
        self._n_groups = n_groups
        every = np.ones(n_groups, dtype=np.bool_)
        self.dense = dense or {"macs": self.macs(every), "params": float(self.params(every))}

    def thinned(self, terms: Mapping[str, Term]) -> "CostModel":
        """The costs where the elements of some parameters are counted by other terms; `dense` stays what it is."""
        params = [terms.get(term.name, term) for term in self._params.terms]
        return CostModel(self._macs.terms, params, self._n_groups, self.dense)

    def macs(self, kept: NDArray[np.bool_]) -> float:
        """Multiply-accumulates of convolutions, linear layers and matrix products, for one sample."""
        return self._macs(kept)

    def params(self, kept: NDArray[np.bool_]) -> int:
        """Number of parameters."""
        return round(self._params(kept))

    def macs_marginal(self, kept: NDArray[np.bool_]) -> Floats:
        """What `macs` falls by if one group alone is removed in addition; (G,)."""
        return self._macs.marginal(kept)

    def params_marginal(self, kept: NDArray[np.bool_]) -> Floats:
        """What `params` falls by if one group alone is removed in addition; (G,)."""
        return self._params.marginal(kept)

    def terms(self, unit: str) -> tuple[Term, ...]:
        """The summands of a cost; unit: "macs" or "params"."""
        return {"macs": self._macs, "params": self._params}[unit].terms

    def macs_by_operator(self, kept: NDArray[np.bool_]) -> dict[str, float]:
        """Multiply-accumulates of each operator, by node name."""
        by_name: dict[str, float] = {}
        for name, value in zip(self._macs.names, self._macs.per_term(kept), strict=True):
            by_name[name] = by_name.get(name, 0.0) + float(value)
        return by_name
