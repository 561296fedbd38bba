"""The result of a channel analysis: which channels can go, which only together, and what that saves."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import networkx as nx
import numpy as np

from graphprune.passes.channels.analysis import Analysis, Frozen
from graphprune.passes.channels.branches import Fate, Flow, Step
from graphprune.passes.channels.cost import CostModel, Term
from graphprune.passes.channels.labels import PINNED, Labels, Mask, varying
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.channels.segments import Segments
from graphprune.passes.channels.sets import FacetTable, Ids, group_ids, sort_into_sets
from graphprune.passes.channels.sets import GroupSet as GroupSet
from graphprune.passes.channels.value import Facet, Value
from graphprune.passes.errors import PlanError


@dataclass(frozen=True)
class ParamSlice:
    """A member of a group: the `indices` of a parameter or buffer along one dimension."""

    parameter: str
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    Attributes:
        index: number of the group in its graph.
        members: slices that go with it.
        exact: removing it, once zero, changes nothing.
        why_inexact: the operator whose statistics change, or None.
    """

    index: int
    members: tuple[ParamSlice, ...]
    exact: bool
    why_inexact: str | None


class ChannelGraph:
    """Coupled channel groups of a model.

    What is not needed to number the groups (sets, flow of values, costs, reasons) is read when it is first asked for.

    Attributes:
        n_groups: number of groups that can be removed.
        axes: (parameter or buffer, dimension) -> group id per index, -1 where it cannot be removed.
        sets: the groups, sorted into sets of the same structure.
        set_of: (G,) set of each group.
        exact: (G,) removing the group, once zero, changes nothing.
        frozen: what cannot be removed, with reasons.
        value_groups: node -> (dimension, group id per index) of activations with channels.
        cost: multiply-accumulates and parameters of a slim model.
        unknown: operators without a rule, with how often they occur.
        uncounted: operators that compute but are missing from `cost`, each with the reason.
    """

    def __init__(
        self,
        analysis: Analysis,
        values: Mapping[str, Value],
        *,
        parameters: frozenset[str],
        batch: int,
        inputs: tuple[Mapping[str, Any], ...] = (),
        unknown: Mapping[str, int] | None = None,
        uncounted: Sequence[str] = (),
        steps: Sequence[Step] = (),
        outputs: Sequence[Value] = (),
        same: Mapping[int, int] | None = None,
        front_end: Any = None,
    ) -> None:
        """Settle `analysis` and read its classes.

        Args:
            analysis: a run whose outputs were frozen.
            values: results of the nodes, by node name.
            parameters: names that count as parameters (carriers also hold buffers).
            batch: samples in the example inputs.
            inputs: shape and dtype of each input.
            unknown: operators without a rule and their number.
            uncounted: operators that compute but cost nothing here, each with the reason.
            steps: the operators in the order of computation.
            outputs: the values that the model returns.
            same: id of a value -> id of the value that it restates.
            front_end: what the front end needs to cut its own graph later.
        """
        self.front_end = front_end
        analysis.settle()
        self._analysis = analysis
        self._values = values
        self._inputs = inputs
        self._batch = batch
        self._steps, self._outputs, self._same = steps, outputs, same or {}
        self.shapes = dict(analysis.parameter_shapes)
        self.unknown = dict(unknown or {})
        self.uncounted = tuple(uncounted)
        self._id_of, self.n_groups = group_ids(analysis.carriers, analysis.space)
        self._carriers = carriers = Segments(list(analysis.carriers.values()))
        ids = self._id_of[carriers.values]
        removable = carriers.most(ids) >= 0
        of_axes = zip(analysis.carriers, carriers.apart(ids), removable.tolist(), strict=True)
        self.axes: dict[tuple[str, int], Ids] = {key: own for key, own, some in of_axes if some}
        self.parameters = parameters
        self._read_exactness()

    # -- reading the analysis -------------------------------------------------------------------------

    def _ids(self, labels: Labels) -> Ids:
        return self._id_of[labels]

    def _read_exactness(self) -> None:
        labels, which, reasons = self._analysis.harmful()
        self.exact: Mask = np.ones(self.n_groups, dtype=np.bool_)
        self._why: Ids = np.full(self.n_groups, -1, dtype=np.int64)
        self._reasons = reasons
        ids = self._ids(labels)
        self.exact[ids[ids >= 0]] = False
        self._why[ids[ids >= 0]] = which[ids >= 0]

    @cached_property
    def _facets(self) -> FacetTable:
        facets = (f for value in self._values.values() for f in value.facets)
        results = (f for step in self._steps for value in step.results for f in value.facets)
        return FacetTable((*facets, *results), self._id_of)

    @cached_property
    def _sorted(self) -> tuple[Ids, list[GroupSet]]:
        return sort_into_sets(self.axes, self.n_groups, self._facets, self.shapes, self._analysis.output_dims)

    @property
    def set_of(self) -> Ids:
        """See the class."""
        return self._sorted[0]

    @cached_property
    def sets(self) -> tuple[GroupSet, ...]:
        """See the class."""
        flow = self.flow
        return tuple(replace(s, bypassed=flow.fates(frozenset({s.index})) is not None) for s in self._sorted[1])

    @cached_property
    def flow(self) -> Flow:
        """How values run through the operators."""
        table, same = self._facets, self._same
        whole: dict[int, frozenset[int]] = {}
        touched: dict[int, frozenset[int]] = {}
        owners_of = table.owners(self.set_of)
        for value in (value for step in self._steps for value in step.results):
            key = same.get(id(value), id(value))
            for row in map(table.row, value.facets):
                if row is None:
                    continue
                touched[key] = touched.get(key, frozenset()) | owners_of[row]
                if table.whole[row]:
                    whole[key] = owners_of[row]
        return Flow(self._steps, self._outputs, whole, touched, same)

    @cached_property
    def frozen(self) -> list[Frozen]:
        """See the class."""
        carriers = self._carriers
        space, axes, first = self._analysis.space, self._analysis.carriers, self._analysis.output_dims
        found: dict[int, dict[int, None]] = {}
        names: dict[int, dict[str, None]] = {}
        every = space.frozen(carriers.values)
        reported = (carriers.most(every) > PINNED).tolist()
        roots = space.find(carriers.values)
        parts = zip(axes, reported, carriers.apart(every), carriers.apart(roots), strict=True)
        for (name, dim), some, reasons, labels in parts:
            own = first.get(name, 0)
            if not some or (dim != own and (name, own) in axes and len(self.shapes[name]) > 1):
                continue  # what is not a layer's own output is said at its producer
            for reason in np.unique(reasons[reasons > PINNED]):
                found.setdefault(int(reason), {}).update(dict.fromkeys(labels[reasons == reason].tolist()))
                names.setdefault(int(reason), {}).update({name: None} if name in self.parameters else {})
        return [
            Frozen(space.reasons[reason], len(channels), tuple(names[reason]))
            for reason, channels in found.items()
            if names[reason]
        ]

    @cached_property
    def value_groups(self) -> dict[str, tuple[int, Ids]]:
        """See the class."""
        found = {}
        for name, value in self._values.items():
            for facet in () if value.constant else value.facets:
                dims = self._analysis.space.varies(facet.labels)
                if len(dims) == 1:
                    found[name] = (dims[0], self._ids(facet.labels.ravel()))
                    break
        return found

    @cached_property
    def cost(self) -> CostModel:
        """See the class."""
        macs = [
            Term(term.name, term.factor / self._batch, tuple(self._ids(axis) for axis in term.axes))
            for term in self._analysis.terms
        ]
        params = []
        for name, shape in self.shapes.items():
            if name in self.parameters:
                axes = [self.axes[(name, dim)] for dim in range(len(shape)) if (name, dim) in self.axes]
                fixed = prod(size for dim, size in enumerate(shape) if (name, dim) not in self.axes)
                params.append(Term(name, float(fixed), tuple(axes)))
        return CostModel(macs, params, self.n_groups)

    def thinned(self, masks: Mapping[str, Mask], present: Mask) -> "ChannelGraph":
        """The same graph, in whose cost only some elements of some matrices count.

        Each input channel brings its own number of elements, so the count is exact as long as no row goes; of rows
        that go, each takes the same share of them.

        Args:
            masks: parameter (out, in) -> which elements count.
            present: (G,) groups that are there when they do.
        """
        thin = copy(self)
        terms = {name: self._left(name, mask, present) for name, mask in masks.items()}
        thin.__dict__["cost"] = self.cost.thinned(terms)
        return thin

    def _left(self, name: str, mask: Mask, present: Mask) -> Term:
        """The elements of a matrix that count, as many of each column as there are in it."""
        rows, columns = (self.axes.get((name, dim), np.full(size, -1)) for dim, size in enumerate(mask.shape))
        here = [(ids < 0) | present[ids] for ids in (rows, columns)]
        each = (mask & np.outer(*here)).sum(0).astype(np.float64)
        share = 1.0 / max(1, int(here[0].sum()))
        return Term(name, share, (columns, rows), (each,))

    # -- for users -----------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[Mapping[str, Any], ...]:
        """Shape and type of each input that the graph was analyzed with; of files the name as well."""
        return self._inputs

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Every group with its members written out."""
        members: list[list[ParamSlice]] = [[] for _ in range(self.n_groups)]
        for (name, dim), ids in self.axes.items():
            order = np.argsort(ids, kind="stable")
            bounds = np.searchsorted(ids[order], np.arange(self.n_groups + 1))
            for group in np.unique(ids[ids >= 0]).tolist():
                picked = np.sort(order[bounds[group] : bounds[group + 1]])
                members[group].append(ParamSlice(name, dim, tuple(picked.tolist())))
        return tuple(ChannelGroup(i, tuple(m), bool(self.exact[i]), self.why_inexact(i)) for i, m in enumerate(members))

    def ids_of(self, facet: Facet) -> Ids:
        """Group id of each of a facet's labels, -1 where they cannot be removed; shape of the labels."""
        return self._ids(facet.labels)

    def why_frozen(self, facet: Facet) -> set[str]:
        """Why some of a facet's channels cannot be removed; "" stands for those of which nothing says it."""
        codes = np.unique(self._analysis.space.frozen(facet.labels)).tolist()
        return {self._analysis.space.reasons[code] if code > PINNED else "" for code in codes if code >= 0}

    def why_inexact(self, group: int) -> str | None:
        """Why removing a group changes the others, or None when it does not."""
        return None if self.exact[group] else self._reasons[self._why[group]]

    def all_kept(self) -> Mask:
        """(G,) all True."""
        return np.ones(self.n_groups, dtype=np.bool_)

    def plan(self, removed: Mask, **meta: Any) -> PruningPlan:
        """The plan that removes the groups of `removed`, (G,) bool.

        Raises:
            PlanError: `removed` has another length, or empties a set that has no branch around it.
        """
        removed = np.asarray(removed, dtype=np.bool_)
        if removed.shape != (self.n_groups,):
            raise PlanError(f"expected a flag for each of {self.n_groups} groups, got shape {removed.shape}")
        removed = self.with_unreached(removed)
        cut: dict[str, dict[int, tuple[int, ...]]] = {}
        for (name, dim), ids in self.axes.items():
            gone = np.flatnonzero((ids >= 0) & removed[ids])
            if gone.size:
                cut.setdefault(name, {})[dim] = tuple(gone.tolist())
        options = {name: True for name, is_set in self._analysis.options.items() if is_set}
        return PruningPlan(cut, {name: self.shapes[name] for name in cut}, self._inputs, meta, options)

    def with_unreached(self, removed: Mask) -> Mask:
        """`removed` and the groups that are computed for nothing once whole branches went.

        Raises:
            PlanError: a set would be emptied that has no branch around it.
        """
        fates = self.fates(removed)
        if not fates:
            return removed
        return removed | np.isin(self.set_of, list(self.flow.unreached(fates)))

    def fates(self, removed: Mask) -> dict[int, Fate]:
        """What becomes of the operators around sets that go as a whole: number in `flow.steps` -> fate.

        Raises:
            PlanError: a set has no branch around it.
        """
        emptied = frozenset(s.index for s in self.sets if removed[s.groups].all())
        found = self.flow.fates(emptied)
        if found is not None:
            return found
        for index in sorted(emptied):
            if not self.sets[index].bypassed:
                raise PlanError(f"the plan removes every channel of {self.sets[index].name}: keep at least one")
        raise PlanError("the plan removes every channel of sets that cannot go together: keep at least one of each")

    def removed_by(self, plan: PruningPlan) -> Mask:
        """The groups that a plan removes, (G,) bool.

        Raises:
            PlanError: the plan does not fit, cuts a group in part, or empties a set.
        """
        plan.check_fits(self.shapes)
        removed = np.zeros(self.n_groups, dtype=np.bool_)
        for name, dims in plan.removed.items():
            for dim, indices in dims.items():
                ids = self.axes.get((name, dim), np.full(self.shapes[name][dim], -1))[list(indices)]
                if (ids < 0).any():
                    raise PlanError(f"plan removes channels of {name} along dimension {dim} that cannot be removed")
                removed[ids] = True
        gone = np.append(removed, False)  # what cannot be removed has the id -1
        for (name, dim), ids in self.axes.items():
            if np.count_nonzero(gone[ids] == plan.kept(name, dim, len(ids))):
                raise PlanError(f"plan cuts coupled channels of {name} along dimension {dim} only in part")
        self.fates(removed)
        return removed

    def cuts(self, value: Value, removed: Mask) -> dict[int, Mask]:
        """Which positions of a value stay, for each dimension that gets shorter."""
        kept: dict[int, Mask] = {}
        if not removed.any():
            return kept
        for facet in value.facets:
            ids = self._ids(facet.labels)
            gone = (ids >= 0) & removed[ids]
            if not gone.any():
                continue
            dims = varying(gone) or self._analysis.space.varies(facet.labels)
            if len(dims) != 1:
                raise PlanError(f"internal: a cut of a {value.shape} tensor is not rectangular")
            dim = dims[0]
            mask = ~np.moveaxis(gone, dim, 0).reshape(gone.shape[dim], -1)[:, 0]
            kept[dim] = kept[dim] & mask if dim in kept else mask
        return kept

    def to_networkx(self) -> nx.Graph:
        """Sets of coupled channels and the parameters they run through, as a bipartite graph.

        Nodes: `("set", i)` with name, channels, exact; `("parameter", name)` with shape. An edge says that the
        set's channels are indices of the parameter along `dim`, `each` indices for one channel.
        """
        graph = nx.MultiGraph()
        for group_set in self.sets:
            node = ("set", group_set.index)
            exact = bool(self.exact[group_set.groups].all())
            graph.add_node(node, name=group_set.name, channels=len(group_set.groups), exact=exact)
            for name, dim, each in group_set.members:
                graph.add_node(("parameter", name), shape=self.shapes[name])
                graph.add_edge(node, ("parameter", name), dim=dim, each=each)
        return graph

    def __iter__(self) -> Iterator[GroupSet]:
        return iter(self.sets)

    def __repr__(self) -> str:
        return f"<ChannelGraph: {self.n_groups} groups in {len(self.sets)} sets, {len(self.frozen)} frozen reasons>"
