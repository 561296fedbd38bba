"""Sums of products by letters.

"bnhd,bmhd->bhnm":  y[b,h,n,m] = sum over d of q[b,n,h,d] * k[b,m,h,d]
"""

from collections.abc import Sequence
from itertools import combinations
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Op, Rule
from graphprune.passes.channels.rules.linear import agree, settled
from graphprune.passes.channels.value import Facet, Value


def einsum(analysis: Analysis, op: Op) -> list[Value]:
    """Sum of products by letters: a letter of the result meets as in a product, any other is summed over.

    Source: torch.einsum. Equations with a letter twice in one operand freeze what they touch.
    """
    values = op.values()
    spelled = spell_out(str(op.attrs["equation"]), [value.rank for value in values])
    if spelled is None:
        for value in values:
            analysis.freeze_value(value, op, "an einsum of this form has no rule")
        return [Value(shape) for shape in op.out_shapes]
    terms, right = spelled
    letters = "".join(dict.fromkeys("".join(terms)))
    placed = [_by_letters(value, term, letters) for value, term in zip(values, terms, strict=True)]
    for (i, left), (j, other) in combinations(enumerate(placed), 2):
        for letter in set(terms[i]) & set(terms[j]) - set(right):
            agree(analysis, left, other, letters.index(letter), (values[i].constant, values[j].constant))
    for value, term in zip(values, terms, strict=True):
        kept = [dim for dim, letter in enumerate(term) if letter in right]
        if kept and len(kept) < len(term):
            analysis.outputs_along(value, kept[-1])
    values = [settled(analysis, value) for value in values]
    facets: list[Facet] = []
    factor, axes = 1, []
    for letter in letters:
        of = [(v, t.index(letter)) for t, v in zip(terms, values, strict=True) if letter in t]
        of = [(v, dim) for v, dim in of if v.shape[dim] > 1]  # sizes 1 are repeated
        merged = _merged_letter(analysis, op, [analysis.axis(v, dim) for v, dim in of], letter in right)
        if merged is None:
            factor *= max((v.shape[dim] for v, dim in of), default=1)
            continue
        axes.append(merged.labels)
        if letter in right:
            facets.append(merged.facet(len(right), right.index(letter)))
    if len(terms) > 1:
        analysis.cost(op, float(factor), axes)
    return [Value(op.shape, tuple(facets), constant=all(v.constant for v in values))]


def spell_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, with none left out; None where a letter stands twice in one.

    "..." becomes letters of its own, counted from the right; a result that is not given has "..." and the letters that
    stand once, in order.

    Example:
        >>> spell_out("...ij,jk", [3, 2])
        (['Aij', 'jk'], 'Aik')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    spare = [letter for letter in ascii_uppercase + ascii_lowercase if letter not in left]
    hidden = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    most = max(hidden)
    if not arrow:
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        right = "..." * (most > 0) + "".join(once)
    spelled = [term.replace("...", "".join(spare[most - n : most])) for term, n in zip(terms, hidden, strict=True)]
    if any(len(set(term)) != len(term) or len(term) != rank for term, rank in zip(spelled, ranks, strict=True)):
        return None
    return spelled, right.replace("...", "".join(spare[:most]))


def _by_letters(value: Value, term: str, letters: str) -> list[Facet]:
    """The facets in the dimensions of all letters."""
    order = sorted(range(len(term)), key=lambda dim: letters.index(term[dim]))
    new = [dim for dim, letter in enumerate(letters) if letter not in term]
    return [facet.map(lambda array: np.expand_dims(array.transpose(order), new)) for facet in value.facets]


def _merged_letter(analysis: Analysis, op: Op, found: list[Axis | None], in_result: bool) -> Axis | None:
    present = [axis for axis in found if axis is not None]
    if not present:
        return None
    if len(present) < len(found):  # an operand that cannot be cut along this letter
        for axis in present:
            analysis.freeze(axis.labels, op, "is multiplied with a tensor that cannot be cut")
        return None
    zero = np.logical_or.reduce([axis.zero for axis in present])
    for axis in present[1:]:
        analysis.unite(present[0].labels, axis.labels)
    if not in_result:
        analysis.contract(present[0].labels, zero, op)
    return Axis(present[0].labels, zero)


def _read_einsum(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    equation = attrs["equation"]
    return {"equation": equation.decode() if isinstance(equation, bytes) else equation}


RULES = (
    Rule(
        "einsum",
        einsum,
        aten={"einsum": Binding()},
        onnx={"Einsum": Binding(inputs=("tensors...",), read=_read_einsum)},
    ),
)
