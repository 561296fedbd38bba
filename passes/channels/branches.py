"""Branches with a way around them, which may go as a whole.

When every channel between two convolutions of a residual branch is gone, the second one sums over nothing: its
result is its bias, the same at every position. Operators that treat each position alone (batch norm,
activations) keep it so, and at the add that joins the branch to its bypass the constant is added to a tensor
that is still there: the branch is folded into one number a channel, or into nothing when it is zero.

The search runs on the flow of values between operators, a directed networkx graph.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import networkx as nx

from graphprune.passes.channels.analysis import Op, Rule
from graphprune.passes.channels.value import Value


@dataclass(frozen=True)
class Step:
    """One operator as it was analyzed: rule (None: unknown) and results."""

    op: Op
    rule: Rule | None
    results: tuple[Value, ...]


class Fate(Enum):
    """What becomes of an operator when whole sets of channels go."""

    GONE = "its result has no channels left"
    HEAD = "sums over no channels: its result is its bias"
    CONSTANT = "computes a constant from constants"
    JOIN = "adds a constant to a tensor that stays"


class Flow:
    """How values run through a network's operators, and what goes when sets of channels go."""

    def __init__(
        self,
        steps: Sequence[Step],
        outputs: Iterable[Value],
        whole: Mapping[int, frozenset[int]],
        touched: Mapping[int, frozenset[int]],
        same: Mapping[int, int],
    ) -> None:
        """Link operators by the values that they share.

        Args:
            steps: operators in the order of computation.
            outputs: values that the network returns.
            whole: value key -> the sets that all its channels along one dimension belong to.
            touched: value key -> all sets that it has channels of.
            same: id of a value -> id of the value that it restates. The key of a value is its id, through `same`.
        """
        self.steps = steps
        self._same = same
        self._whole = whole
        self._touched = touched
        self._outputs = {self.key(value) for value in outputs}
        self._consumers: dict[int, list[int]] = {}
        self._emptied_by: dict[int, list[int]] = {}
        for number, step in enumerate(steps):
            for value in step.op.values():
                if not value.constant:
                    self._consumers.setdefault(self.key(value), []).append(number)
            for value in step.results:
                for owner in whole.get(self.key(value), ()):
                    self._emptied_by.setdefault(owner, []).append(number)

    def key(self, value: Value) -> int:
        """What tells values apart."""
        return self._same.get(id(value), id(value))

    @cached_property
    def graph(self) -> nx.DiGraph:
        """Operators by number, with an edge for every value that runs from one to another."""
        graph = nx.DiGraph()
        for number, step in enumerate(self.steps):
            graph.add_node(number, name=step.op.name, kind=step.op.kind)
            for value in step.results:
                graph.add_edges_from((number, consumer) for consumer in self._consumers.get(self.key(value), ()))
        return graph

    def fates(self, emptied: frozenset[int]) -> dict[int, Fate] | None:
        """What becomes of the operators that feel it when all of `emptied` goes; None when it cannot go.

        An operator that cannot do without what went is no obstacle when nothing reads it any more.
        """
        fates: dict[int, Fate] = {}
        stuck: set[int] = set()
        flat: set[int] = set()  # values that are constant over batch and positions
        pending: set[int] = set()
        for index in emptied:
            pending.update(self._emptied_by.get(index, ()))
        if emptied and not pending:
            return None
        while pending:
            number = min(pending)  # operators stand in the order of computation
            pending.remove(number)
            step = self.steps[number]
            fate = self._fate(step, emptied, flat)
            if fate is None:
                if any(self._is_empty(v, emptied) or self.key(v) in flat for v in step.op.values()):
                    stuck.add(number)
                continue  # only some of its results' sets go
            fates[number] = fate
            if fate is Fate.JOIN:
                continue
            for value in step.results:
                if self.key(value) in self._outputs:
                    return None
                if fate is not Fate.GONE:
                    flat.add(self.key(value))
                pending.update(self._consumers.get(self.key(value), ()))
        return None if stuck and stuck & self._live(fates) else fates

    def _is_empty(self, value: Value, emptied: frozenset[int]) -> bool:
        owners = self._whole.get(self.key(value))
        return owners is not None and owners <= emptied

    def _fate(self, step: Step, emptied: frozenset[int], flat: set[int]) -> Fate | None:
        if any(self._is_empty(value, emptied) for value in step.results):
            return Fate.GONE
        moving = [value for value in step.op.values() if not value.constant]
        if any(self._is_empty(value, emptied) for value in moving):
            return Fate.HEAD if step.rule is not None and step.rule.sums is not None and len(moving) == 1 else None
        if step.rule is None or not step.rule.is_pointwise(step.op):
            return None
        staying = [value for value in moving if self.key(value) not in flat]
        if len(staying) == len(moving):
            return None
        if not staying:
            return Fate.CONSTANT
        return Fate.JOIN if staying[0].shape == step.results[0].shape else None

    def unreached(self, fates: Mapping[int, Fate]) -> frozenset[int]:
        """Sets of which no channel is computed any more once operators went."""
        live = self._live(fates)
        alive: set[int] = set()
        every: set[int] = set()
        for number, step in enumerate(self.steps):
            for value in step.results:
                owners = self._touched.get(self.key(value), frozenset())
                every |= owners
                if number in live:
                    alive |= owners
        return frozenset(every - alive)

    def _live(self, fates: Mapping[int, Fate]) -> set[int]:
        """Operators that the outputs still need."""
        producer = {self.key(value): number for number, step in enumerate(self.steps) for value in step.results}
        dropped = {number for number, fate in fates.items() if fate is not Fate.JOIN}
        live: set[int] = set()
        pending = [producer[key] for key in self._outputs if key in producer]
        while pending:
            number = pending.pop()
            if number in live or number in dropped:
                continue
            live.add(number)
            keys = (self.key(value) for value in self.steps[number].op.values())
            pending.extend(producer[key] for key in keys if key in producer)
        return live
