"""Removing channels from ONNX graphs: those that a plan names, or those that are dead already."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.cut import remove_groups


@dataclass(frozen=True)
class Removal:
    """What a removal pass did: groups removed, and how many channels of how many layers that is."""

    groups: int
    channels: int
    layers: int


class ChannelRemovalPass(ir.passes.InPlacePass):
    """Remove groups of coupled channels: those of a plan, or without one those that are dead.

    Cases:
        1. no plan: a group is dead when every operator that sums over its channels meets zeros, in its weight
           or in the value. One channel of a layer always stays.
        2. a plan: the groups that its indices name. Parameters that the exporter renamed or folded are found
           through the ones it did not.

    Afterwards initializers are sliced, constants and attributes that repeat sizes rewritten, shapes noted.
    Running it again changes nothing. `removal` tells what the last run did, `unknown`
    which operators it has no rule for.
    """

    def __init__(self, plan: PruningPlan | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.removal = Removal(0, 0, 0)
        self.unknown: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass; see the class.

        Raises:
            PlanError: the plan fits none of the model's weights, or cuts coupled channels in part.
        """
        heads = self.plan is not None and self.plan.options.get("whole_heads", False)
        graph = trace_onnx(model, dead=self.plan is None, whole_heads=heads)
        removed = dead_groups(graph) if self.plan is None else planned_groups(graph, self.plan)
        self.removal, self.unknown = _describe(graph, removed), graph.unknown
        if not removed.any():
            return ir.passes.PassResult(model, modified=False)
        remove_groups(graph, removed)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def dead_groups(graph: ChannelGraph) -> Mask:
    """Groups that add nothing, given a graph traced with `dead=True`; (G,) bool.

    Of a set without a branch around it, one group stays.
    """
    removed = graph.exact.copy()
    emptied = [group_set for group_set in graph.sets if removed[group_set.groups].all()]
    if graph.flow.fates(frozenset(group_set.index for group_set in emptied)) is None:
        for group_set in emptied:
            removed[group_set.groups[0]] = group_set.bypassed and removed[group_set.groups[0]]
    if graph.flow.fates(frozenset(s.index for s in graph.sets if removed[s.groups].all())) is None:
        removed[[group_set.groups[0] for group_set in emptied]] = False
    return graph.with_unreached(removed)


def planned_groups(graph: ChannelGraph, plan: PruningPlan) -> Mask:
    """Groups that a plan names by the weights which the model still has under the same name and shape.

    Raises:
        PlanError: there are none, or coupled channels are cut in part.
    """
    removed = np.zeros(graph.n_groups, dtype=np.bool_)
    known = [name for name in plan.removed if graph.shapes.get(name) == tuple(plan.shapes.get(name, ()))]
    if plan.removed and not known:
        raise PlanError("the plan names no weight of this file: was it made for another model?")
    for name in known:
        for dim, indices in plan.removed[name].items():
            axis = graph.axes.get((name, dim))
            if axis is None or (axis[list(indices)] < 0).any():
                raise PlanError(f"the plan removes channels of {name} along dimension {dim} that cannot be removed")
            removed[axis[list(indices)]] = True
    for name in known:
        for dim in range(len(graph.shapes[name])):
            ids = graph.axes.get((name, dim))
            if ids is None:
                continue
            planned = ~plan.kept(name, dim, len(ids))
            if not np.array_equal(planned, (ids >= 0) & removed[ids]):
                raise PlanError(f"the plan cuts coupled channels of {name} along dimension {dim} only in part")
    return graph.with_unreached(removed)


def _describe(graph: ChannelGraph, removed: Mask) -> Removal:
    channels = layers = 0
    for (name, dim), ids in graph.axes.items():
        if dim == _producing_dim(graph, name):
            gone = int(((ids >= 0) & removed[ids]).sum())
            channels += gone
            layers += gone > 0
    return Removal(int(removed.sum()), channels, layers)


def _producing_dim(graph: ChannelGraph, name: str) -> int | None:
    return 0 if len(graph.shapes[name]) > 2 else None
