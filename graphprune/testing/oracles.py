"""Four ways to find out that a rule is wrong. Each counts what it compared, and raises where something does not hold.

1. *Cut equals mask*: the network without channels computes what it does with them at zero; and what the rule calls zero
   is zero.
2. *torch equals ONNX*: both forms of a network have the same groups, and compute the same without channels.
3. *Groups*: they are those that are expected.
4. *Refusal*: channels around the operator that stay do so for a reason that is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value
from graphprune.passes.errors import GraphPruneError, PlanError, RuleError
from graphprune.passes.onnx.slim import planned_groups
from graphprune.testing.example import members_of, written_out
from graphprune.testing.network import Applied, Arrays, Network

#: Largest difference allowed, relative to the largest value of an output, by the size of its numbers in bytes.
_TOLERANCES = {2: 2e-2, 4: 1e-4, 8: 1e-9}
#: Outputs below this are nothing to compare with.
_NOTHING = 1e-6


def cut_equals_mask(network: Network, applied: Sequence[Applied], seed: int) -> int:
    """Oracle 1; the number of outputs and results that were compared.

    Removed are exact groups: one of every set, then others at random. Inexact ones are only cut and run.

    Raises:
        RuleError: it does not hold, or there was nothing to compare.
    """
    _require_different(network)
    graph, names = network.graph, [name for each in applied for name in each.names]
    around = _around(graph, applied)
    dense, compared, is_judged = network.dense(), 0, False
    for removed in _removals(graph, graph.exact, seed):
        expected, inside = network.masked(removed, names)
        _require_content(expected, network)
        for way, found in _cut(network, removed).items():
            compared += _compare(expected, found, f"{_without(network, removed)}, masked and cut ({way})")
        compared += sum(_require_zero(network, each, inside, removed) for each in applied)
        is_judged = is_judged or bool(removed[around].any())
    for removed in _removals(graph, ~graph.exact, seed):
        for way, found in _cut(network, removed).items():
            if [a.shape for a in found] != [a.shape for a in dense] or not all(np.isfinite(a).all() for a in found):
                raise RuleError(f"{_without(network, removed)}, cut ({way}), it gives other shapes or no numbers")
            compared += 1
        is_judged = is_judged or bool(removed[around].any())
    if not is_judged:
        raise RuleError(f"the {network.vocabulary} network has no channels around the operator that could be removed")
    return compared


def torch_equals_onnx(torch: Network, onnx: Network, seed: int) -> int:
    """Oracle 2; the number of groups and outputs that were compared.

    Compared are members that both know by the same name and shape.

    Raises:
        RuleError: it does not hold, or there was nothing to compare.
    """
    compared = _compare(torch.dense(), onnx.dense(), "torch and ONNX")
    common = {name for name, shape in torch.graph.shapes.items() if onnx.graph.shapes.get(name) == shape}
    ours, theirs = (_known(network.graph, common) for network in (torch, onnx))
    for one, other, vocabulary in ((ours, theirs, "torch"), (theirs, ours, "ONNX")):
        if lone := sorted(one - other):
            raise RuleError(f"torch and ONNX couple channels differently: only {vocabulary} has the group {lone[0]}")
    if not ours and (torch.graph.n_groups or onnx.graph.n_groups):
        raise RuleError("torch and ONNX have no group in common: do the weights go by the same names in both?")
    for removed in _removals(torch.graph, torch.graph.exact, seed):
        try:
            same = planned_groups(onnx.graph, torch.graph.plan(removed))
        except PlanError as error:
            raise RuleError(f"what torch may remove, ONNX may not: {error}") from error
        (left, *_), (right, *_) = (list(_cut(n, r).values()) for n, r in ((torch, removed), (onnx, same)))
        compared += _compare(left, right, f"{_without(torch, removed)}, torch and ONNX")
    return compared + len(ours)


def groups_are(network: Network, expected: Sequence[str]) -> int:
    """Oracle 3; the number of groups.

    Raises:
        RuleError: they are others.
    """
    found = [" ".join(sorted(group.split())) for group in written_out(network.graph)]
    wanted = [" ".join(sorted(group.split())) for group in expected]
    for ours, theirs, what in ((found, wanted, "is not expected"), (wanted, found, "is expected, and is none")):
        lone = sorted(set(ours) - set(theirs))
        if lone:
            raise RuleError(f"a group of the {network.vocabulary} network {what}: {lone[0]} ({len(lone)} such)")
    if len(wanted) != len(found):
        raise RuleError(f"{len(wanted)} groups are expected, the {network.vocabulary} network has {len(found)}")
    return len(found)


def refusal_has_reason(network: Network, applied: Sequence[Applied], refused: str | None) -> int:
    """Oracle 4; the number of inputs that were looked at.

    Raises:
        RuleError: channels stay and nothing says why, or not for the reason that is expected.
    """
    looked_at, reasons = 0, set()
    for each in applied:
        for value in each.op.values():
            for facet in () if value.constant else value.facets:
                found = network.graph.why_frozen(facet)
                if "" in found:
                    raise RuleError(f"channels that {each.op.kind} ({each.op.where}) reads stay, and nothing says why")
                looked_at += 1
                reasons |= found
    if refused is not None and not any(refused in reason for reason in reasons):
        said = "; ".join(sorted(reasons)) or "nothing"
        raise RuleError(f"no channel that the operator reads stays because it '{refused}'; what is said: {said}")
    return looked_at


def _require_different(network: Network) -> None:
    """Channels with the same numbers cannot be told apart, and one in the place of another would not be noticed."""
    weights = network.weights()
    for (name, dim), ids in network.graph.axes.items():
        array = weights[name]
        if array.dtype.kind == "f" and len(array) and (ids >= 0).sum() > 1:
            rows = np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1)[ids >= 0]
            if len(np.unique(rows, axis=0)) < len(rows):
                raise RuleError(
                    f"channels of {name} along dimension {dim} have the same numbers, so that one in the place of "
                    "another would not be noticed: randomize the network"
                )


def _removals(graph: ChannelGraph, allowed: Mask, seed: int) -> Iterator[Mask]:
    """Groups to remove, (G,) each: the first of every set, the last of every set, and some at random."""
    rng = np.random.default_rng(seed)
    sets = [s.groups[allowed[s.groups]] for s in graph.sets if len(s.groups) > 1 and allowed[s.groups].any()]
    picks = [[groups[:1] for groups in sets], [groups[-1:] for groups in sets]]
    picks.append([rng.permutation(groups)[: max(1, len(groups) // 2)] for groups in sets])
    seen: set[bytes] = set()
    for pick in picks if sets else ():
        removed = np.isin(np.arange(graph.n_groups), np.concatenate(pick))
        if removed.tobytes() not in seen:
            seen.add(removed.tobytes())
            yield removed


def _around(graph: ChannelGraph, applied: Sequence[Applied]) -> Mask:
    """Groups that run through the operators, (G,)."""
    values = [value for each in applied for value in (*each.op.values(), *each.results)]
    ids = [graph.ids_of(facet).ravel() for value in values for facet in value.facets]
    return np.isin(np.arange(graph.n_groups), np.concatenate(ids)) if ids else np.zeros(graph.n_groups, dtype=np.bool_)


def _cut(network: Network, removed: Mask) -> Mapping[str, Arrays]:
    try:
        return network.cut(removed)
    except Exception as error:  # a network that was cut wrongly raises anything
        text = error if isinstance(error, GraphPruneError) else f"{type(error).__name__}: {error}"
        raise RuleError(
            f"{_without(network, removed)}, the cut network fails: {' '.join(str(text).split())}"
        ) from error


def _compare(expected: Arrays, found: Arrays, what: str) -> int:
    """The number of outputs; they must be equal."""
    if [a.shape for a in expected] != [a.shape for a in found]:
        raise RuleError(f"{what}: outputs have the shapes {[a.shape for a in expected]} and {[a.shape for a in found]}")
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one.dtype.kind != "f":
            if not np.array_equal(one, other):
                raise RuleError(f"{what}: output {number} differs")
            continue
        scale = max(float(np.abs(one).max(initial=0)), _NOTHING)
        error = float(np.abs(one.astype(np.float64) - other).max(initial=0)) / scale
        if not error <= max(_TOLERANCES[min(a.dtype.itemsize, 8)] for a in (one, other)):
            raise RuleError(f"{what}: output {number} differs by {error:.2g} of its largest value")
    return len(expected)


def _require_content(outputs: Arrays, network: Network) -> None:
    if not any(array.size and np.abs(array).max() > _NOTHING for array in outputs):
        raise RuleError(f"the outputs of the {network.vocabulary} network are zero, with which nothing is compared")


def _require_zero(network: Network, each: Applied, inside: Mapping[str, np.ndarray], removed: Mask) -> int:
    """The number of results that were looked at; what is called zero in the removed groups is zero."""
    looked_at = 0
    for name, value in zip(each.names, each.results, strict=False):
        if name not in inside or value.zero_point is not None:
            continue
        numbers, claimed = np.abs(inside[name].astype(np.float64)), _claimed(network.graph, value, removed)
        for claim in claimed:
            if numbers[np.broadcast_to(claim, numbers.shape)].max(initial=0) > _NOTHING * numbers.max(initial=0):
                raise RuleError(
                    f"{_without(network, removed)} at zero, the result of {each.op.kind} ({each.op.where}) is called "
                    "zero there, and is not"
                )
        looked_at += bool(claimed)
    return looked_at


def _claimed(graph: ChannelGraph, value: Value, removed: Mask) -> list[Mask]:
    """Where a value is called zero once the removed groups are, facet by facet."""
    found = []
    for facet in value.facets:
        ids = graph.ids_of(facet)
        claim = np.logical_and((ids >= 0) & removed[ids], facet.zero)
        if claim.any():
            found.append(claim)
    return found


def _known(graph: ChannelGraph, names: set[str]) -> set[str]:
    """Groups in words, of members that others know as well."""
    groups = [[m for m in members_of(graph, i) if m.rpartition("/")[0] in names] for i in range(graph.n_groups)]
    return {" ".join(sorted(members)) for members in groups if members}


def _without(network: Network, removed: Mask) -> str:
    return f"in the {network.vocabulary} network without the groups {_ranges(np.flatnonzero(removed).tolist())}"


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    parts = [numbers[a:b] for a, b in pairwise(starts)]
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
