"""Removing channels from ONNX graphs: those that a plan names, or those that are dead already."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.clean import EliminateDeadCodePass, EliminateIdentityPass
from graphprune.passes.onnx.contract import GraphPass
from graphprune.passes.onnx.cut import remove_groups
from graphprune.passes.onnx.fold_affine import FoldBatchNormPass, FoldBiasPass
from graphprune.passes.onnx.shared import merge_copies
from graphprune.passes.onnx.zero_adds import eliminate_zero_adds

#: More rounds than any chain of consequences needs; a pass that never ends would be a mistake of ours.
_ROUNDS = 50

_LAYERS = frozenset(
    "Conv ConvTranspose ConvInteger DeformConv FusedConv QLinearConv Gemm FusedGemm QGemm MatMul FusedMatMul "
    "MatMulInteger QLinearMatMul DynamicQuantizeMatMul MatMulIntegerToFloat RNN GRU LSTM".split()
)


#: Says which groups of a graph must stay; (G,) bool.
Keep = Callable[[ChannelGraph], Mask]


@dataclass(frozen=True)
class Removal:
    """What was removed.

    Attributes:
        groups: coupled channel groups.
        channels: output channels of layers that this is.
        layers: layers that lost some.
        missing: tensors that the plan cuts and the model does not have under this name and size.
    """

    groups: int = 0
    channels: int = 0
    layers: int = 0
    missing: int = 0

    def __add__(self, other: "Removal") -> "Removal":
        """Both together."""
        return Removal(
            self.groups + other.groups,
            self.channels + other.channels,
            self.layers + other.layers,
            self.missing + other.missing,
        )


@dataclass(frozen=True)
class Slimmed:
    """What `slim_model` did to a model.

    Attributes:
        removal: what was removed.
        unknown: operators without a rule, whose channels stay, and how often each occurs.
        changed: whether anything at all was, by one of the passes.
    """

    removal: Removal
    unknown: Mapping[str, int]
    changed: bool


class ChannelRemovalPass(GraphPass):
    """Remove groups of coupled channels: those of a plan, or without one those that are dead.

    Cases:
        1. no plan: a group is dead when every operator that sums over its channels meets zeros, in its weight
           or in the value. One channel of a layer always stays. Additions of zero go first, as they free channels.
        2. a plan: the groups that its indices name. Parameters that the exporter renamed or folded are found
           through the ones it did not.

    Afterwards initializers are sliced, constants and attributes that repeat sizes rewritten, shapes noted.
    `removal` tells what the last run did, `unknown` which operators it has no rule for.
    """

    def __init__(
        self,
        plan: PruningPlan | None = None,
        sizes: Mapping[str, int] | None = None,
        keep: Keep | None = None,
        whole_vectors: bool = False,
    ) -> None:
        """Remove channels of a plan, or dead ones.

        Args:
            plan: the plan; without one, dead channels go.
            sizes: what free sizes of the inputs stand for during the analysis, by name.
            keep: says which groups of a graph stay though they are dead.
            whole_vectors: dead channels of layers that share a vector go together; see `trace_onnx`.
        """
        super().__init__()
        self.whole_vectors = whole_vectors
        self.sizes = sizes
        self.keep = keep
        self.plan = plan
        self.removal = Removal()
        self.unknown: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass; see the class.

        Raises:
            PlanError: the plan fits none of the model's weights, or cuts coupled channels in part.
        """
        self.removal = Removal()
        try:
            return ir.passes.PassResult(model, self._planned(model) if self.plan is not None else self._dead(model))
        finally:
            merge_copies(model)

    def _planned(self, model: ir.Model) -> bool:
        assert self.plan is not None
        graph = trace_planned(model, self.plan, self.sizes)
        self.unknown = graph.unknown
        return self._remove(graph, planned_groups(graph, self.plan))

    def _dead(self, model: ir.Model) -> bool:
        modified = False
        for _ in range(_ROUNDS):
            graph = trace_onnx(model, dead=True, sizes=self.sizes, whole_vectors=self.whole_vectors)
            self.unknown = graph.unknown
            if not (eliminate_zero_adds(graph) or self._remove(graph, self._dead_in(graph))):
                break
            modified = True
            EliminateDeadCodePass()(model)
        return modified

    def _dead_in(self, graph: ChannelGraph) -> Mask:
        dead = dead_groups(graph)
        return dead if self.keep is None else dead & ~self.keep(graph)

    def _remove(self, graph: ChannelGraph, removed: Mask) -> bool:
        if self.plan is not None:
            self.removal += Removal(missing=_missing(graph, self.plan))
        if not removed.any():
            return False
        self.removal += _describe(graph, removed)
        remove_groups(graph, removed)
        EliminateDeadCodePass()(graph.front_end.model)
        return True


def slim_model(
    model: ir.Model,
    plan: PruningPlan | None = None,
    sizes: Mapping[str, int] | None = None,
    keep: Keep | None = None,
    whole_vectors: bool = False,
) -> Slimmed:
    """Remove channels and what became superfluous from a model, in place; for the rest see `ChannelRemovalPass`.

    A plan is applied as it stands, before anything else. Then the passes run until none of them finds anything: in
    which order they do makes no difference to the result.
    """
    removal = ChannelRemovalPass(plan, sizes, keep, whole_vectors)
    changed = plan is not None and removal(model).modified
    total = removal.removal
    passes: list[ir.passes.PassBase] = [EliminateIdentityPass(), FoldBatchNormPass(), FoldBiasPass()]
    passes += [EliminateDeadCodePass(), *([removal] if plan is None else [])]
    version = 0  # of the model: how many passes have changed it
    settled: dict[ir.passes.PassBase, int] = {}  # the version that a pass left behind; its own result holds no more
    for step in itertools.islice(itertools.cycle(passes), _ROUNDS * len(passes)):
        if all(settled.get(each) == version for each in passes):
            break
        if settled.get(step) == version:
            continue
        version += step(model).modified
        settled[step] = version
        total += removal.removal if step is removal else Removal()
    return Slimmed(total, removal.unknown, changed or version > 0)


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


def trace_planned(model: ir.Model, plan: PruningPlan, sizes: Mapping[str, int] | None = None) -> ChannelGraph:
    """The graph of a model, analyzed in the way that the plan was made in; see `trace_onnx`."""
    options = {name: plan.options.get(name, False) for name in ("whole_heads", "whole_vectors")}
    return trace_onnx(model, sizes=sizes, **options)


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
        for dim in plan.removed[name]:
            axis = graph.axes.get((name, dim))
            gone = None if axis is None else axis[~plan.kept(name, dim, len(axis))]
            if gone is None or (gone < 0).any():
                raise PlanError(f"the plan removes channels of {name} along dimension {dim} that cannot be removed")
            removed[gone] = True
    for name in known:
        for dim in range(len(graph.shapes[name])):
            ids = graph.axes.get((name, dim))
            if ids is None:
                continue
            planned = ~plan.kept(name, dim, len(ids))
            if not np.array_equal(planned, (ids >= 0) & removed[ids]):
                raise PlanError(f"the plan cuts coupled channels of {name} along dimension {dim} only in part")
    return graph.with_unreached(removed)


def _missing(graph: ChannelGraph, plan: PruningPlan) -> int:
    """Vectors do not count: exporters fold those of batch norms away, and what they name others name too."""
    shapes = {name: tuple(plan.shapes.get(name, ())) for name in plan.removed}
    return sum(len(shape) > 1 and graph.shapes.get(name) != shape for name, shape in shapes.items())


def _describe(graph: ChannelGraph, removed: Mask) -> Removal:
    channels = layers = 0
    for node in graph.front_end.ops:
        found = graph.value_groups.get(node.outputs[0].name) if node.op_type in _LAYERS else None
        gone = 0 if found is None else int(((found[1] >= 0) & removed[found[1]]).sum())
        channels += gone
        layers += gone > 0
    return Removal(int(removed.sum()), channels, layers)
