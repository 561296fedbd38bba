"""Branches with a way around them, which may go as a whole.

When every channel between two convolutions of a residual branch is gone, the second one sums over nothing: its
result is its bias, the same at every position. Operators that treat each position alone (batch norm,
activations) keep it so, and at the add that joins the branch to its bypass the constant is added to a tensor
that is still there: the branch is folded into one number a channel, or into nothing when it is zero.

The search runs on the flow of values between operators, a directed networkx graph.
"""

import heapq
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
        self._results = [[self.key(value) for value in step.results] for step in steps]
        producer = {key: number for number, keys in enumerate(self._results) for key in keys}
        self._ends = [producer[key] for key in self._outputs if key in producer]
        self._ends += [number for number, keys in enumerate(self._results) if not keys]  # who reads it is not known
        self._moving: list[list[Value]] = []
        self._inputs: list[list[int]] = []
        self._sources: list[list[int]] = []
        self._consumers: dict[int, list[int]] = {}
        self._readers: list[list[int]] = [[] for _ in steps]
        self._emptied_by: dict[int, list[int]] = {}
        for number, step in enumerate(steps):
            values = step.op.values()
            self._moving.append([value for value in values if not value.constant])
            self._inputs.append([self.key(value) for value in values])
            self._sources.append([producer[key] for key in self._inputs[number] if key in producer])
            for value in self._moving[number]:
                self._consumers.setdefault(self.key(value), []).append(number)
            for source in self._sources[number]:
                self._readers[source].append(number)
            for key in self._results[number]:
                for owner in whole.get(key, ()):
                    self._emptied_by.setdefault(owner, []).append(number)
        self._needed = self._live({})

    def key(self, value: Value) -> int:
        """What tells values apart."""
        return self._same.get(id(value), id(value))

    @cached_property
    def graph(self) -> nx.DiGraph:
        """Operators by number, with an edge for every value that runs from one to another."""
        graph = nx.DiGraph()
        for number, step in enumerate(self.steps):
            graph.add_node(number, name=step.op.name, kind=step.op.kind)
            for key in self._results[number]:
                graph.add_edges_from((number, consumer) for consumer in self._consumers.get(key, ()))
        return graph

    def fates(self, emptied: frozenset[int]) -> dict[int, Fate] | None:
        """What becomes of the operators that feel it when all of `emptied` goes; None when it cannot go.

        An operator that cannot do without what went is no obstacle when nothing reads it any more.
        """
        fates: dict[int, Fate] = {}
        stuck: set[int] = set()
        flat: set[int] = set()  # values that are constant over batch and positions
        pending = sorted({number for index in emptied for number in self._emptied_by.get(index, ())})
        if emptied and not pending:
            return None
        seen = set(pending)
        while pending:
            number = heapq.heappop(pending)  # operators stand in the order of computation
            fate = self._fate(number, emptied, flat)
            if fate is None:
                if any(self._is_empty(key, emptied) or key in flat for key in self._inputs[number]):
                    stuck.add(number)
                continue  # only some of its results' sets go
            fates[number] = fate
            if fate is Fate.JOIN:
                continue
            for key in self._results[number]:
                if key in self._outputs:
                    return None
                if fate is not Fate.GONE:
                    flat.add(key)
                for consumer in self._consumers.get(key, ()):
                    if consumer not in seen:
                        seen.add(consumer)
                        heapq.heappush(pending, consumer)
        return None if self._is_read(stuck, fates) else fates

    def _is_empty(self, key: int, emptied: frozenset[int]) -> bool:
        owners = self._whole.get(key)
        return owners is not None and owners <= emptied

    def _fate(self, number: int, emptied: frozenset[int], flat: set[int]) -> Fate | None:
        step, moving = self.steps[number], self._moving[number]
        if step.rule is not None and any(self._is_empty(key, emptied) for key in self._results[number]):
            return Fate.GONE
        if any(self._is_empty(self.key(value), emptied) for value in moving):
            return Fate.HEAD if step.rule is not None and step.rule.sums is not None and len(moving) == 1 else None
        if step.rule is None or not step.rule.is_pointwise(step.op):
            return None
        staying = [value for value in moving if self.key(value) not in flat]
        if len(staying) == len(moving):
            return None
        if not staying:
            return Fate.CONSTANT
        return Fate.JOIN if staying[0].shape == step.results[0].shape else None

    def _is_read(self, some: Iterable[int], fates: Mapping[int, Fate]) -> bool:
        """Do the outputs still need one of these operators?

        The same as a look at `_live`, from the other end: past the last operator that went, nothing has changed.
        """
        dropped = {number for number, fate in fates.items() if fate is not Fate.JOIN}
        last = max(dropped, default=-1)
        pending = list(some)
        seen: set[int] = set(dropped)
        while pending:
            number = pending.pop()
            if number in seen or number not in self._needed:
                continue
            if number > last or number in self._ends:
                return True
            seen.add(number)
            pending.extend(self._readers[number])
        return False

    def unreached(self, fates: Mapping[int, Fate]) -> frozenset[int]:
        """Sets of which no channel is computed any more once operators went."""
        live = self._live(fates)
        alive: set[int] = set()
        every: set[int] = set()
        for number, keys in enumerate(self._results):
            for key in keys:
                owners = self._touched.get(key, frozenset())
                every |= owners
                if number in live:
                    alive |= owners
        return frozenset(every - alive)

    def _live(self, fates: Mapping[int, Fate]) -> set[int]:
        """Operators that the outputs still need."""
        live: set[int] = set()
        seen = {number for number, fate in fates.items() if fate is not Fate.JOIN}
        pending = list(self._ends)
        while pending:
            number = pending.pop()
            if number in seen:
                continue
            seen.add(number)
            live.add(number)
            pending.extend(self._sources[number])
        return live
