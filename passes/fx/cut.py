"""Cutting parameters out of modules and captured graphs, with everything that repeats their sizes."""

import operator
from collections.abc import Mapping
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from graphprune.passes.channels.analysis import Cut, Recount
from graphprune.passes.channels.branches import Fate
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.channels.value import Value
from graphprune.passes.fx.analyze import FxFrontEnd, bind_arguments, concrete
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.fold import condense_branches, fold_branches


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; tied ones under each of their names."""
    named: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def cut_tensors(module: nn.Module, plan: PruningPlan) -> None:
    """Slice every planned parameter and buffer of `module` in place; tied tensors stay tied.

    One after another, so that what was cut is free before the next one is.
    """
    for name, places in _places(module, plan).items():
        table, leaf = places[0]
        cut = _cut_tensor(table[leaf], plan, name)
        for table, leaf in places:
            table[leaf] = cut


def _places(module: nn.Module, plan: PruningPlan) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Name of each planned tensor -> where the module holds it.

    A tied tensor may go by another name in the plan than under the path that is come to first.
    """
    planned = {id(tensor): name for name, tensor in named_tensors(module).items() if name in plan.removed}
    places: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for owner in module.modules():
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for table in tables:
            for leaf, tensor in table.items():
                if id(tensor) in planned:
                    places.setdefault(planned[id(tensor)], []).append((table, leaf))
    return places


def _cut_tensor(tensor: torch.Tensor, plan: PruningPlan, name: str) -> torch.Tensor:
    result = tensor.detach()
    for dim in sorted(plan.removed[name]):  # whole rows first, which are copied fastest
        kept = torch.from_numpy(np.flatnonzero(plan.kept(name, dim, tensor.shape[dim]))).to(tensor.device)
        result = result.index_select(dim, kept)
    return nn.Parameter(result, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result


def cut_graph(
    graph: ChannelGraph,
    plan: PruningPlan,
    removed: Mask,
    weights: Mapping[str, torch.Tensor],
    *,
    trainable: bool = False,
) -> CapturedModule:
    """The captured graph of the analysis with `weights` cut and arguments that repeat sizes rewritten.

    Args:
        graph: a channel graph of the torch front end.
        plan: what goes.
        removed: (G,) the same as groups.
        weights: parameters and buffers by name, before the cut; those that are not cut are shared.
        trainable: what is left of branches that go as a whole stays a function of its parameters, so that the graph
            can be trained on; otherwise it becomes a constant.
    """
    front: FxFrontEnd = graph.front_end
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    new.output(new.graph_copy(front.module.graph, copies))
    new.set_codegen(front.module.graph._codegen)
    own = named_tensors(front.module)
    targets = dict.fromkeys(str(node.target) for node in new.nodes if node.op == "get_attr")
    held = {name: weights[name] if name in weights else own[name].detach().clone() for name in targets if name in own}
    result = CapturedModule(_holder(held), new)
    result.meta.update(front.module.meta)
    result.eval()
    for source, node in copies.items():
        _note_shape(graph, removed, front.env.get(source), node)
        if source.name in front.ops:
            _resize(graph, removed, source, node, result)
    cut_tensors(result, plan)
    fates = graph.fates(removed)
    if fates:
        result = _folded(graph, removed, fates, result, trainable)
    result.recompile()
    return result.train(front.module.training)


def _folded(
    graph: ChannelGraph, removed: Mask, fates: Mapping[int, Fate], cut: CapturedModule, trainable: bool
) -> CapturedModule:
    steps = {graph.flow.steps[number].op.name: (fate, graph.flow.steps[number]) for number, fate in fates.items()}
    sizes = {}
    for name, (fate, step) in steps.items():
        if fate is Fate.HEAD and step.rule is not None and step.rule.sums is not None:
            dim = step.rule.sums(step.op)
            kept = graph.cuts(step.results[0], removed).get(dim)
            sizes[name] = step.op.shape[dim] if kept is None else int(kept.sum())
    (condense_branches if trainable else fold_branches)(cut, steps, sizes)
    result = CapturedModule(cut, cut.graph)  # without the parameters that nothing reads any more
    result.meta.update(cut.meta)
    return result.eval()


def _holder(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module that holds tensors under dotted names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor)
    return root


def _note_shape(graph: ChannelGraph, removed: Mask, value: Any, node: fx.Node) -> None:
    """Note the new sizes on a node of which the result got smaller."""
    values = value if isinstance(value, list) else [value]
    cuts = [graph.cuts(v, removed) if isinstance(v, Value) else {} for v in values]
    if not any(cuts) or node.op == "get_attr":
        return
    noted = node.meta["val"]
    before = noted if isinstance(noted, tuple | list) else [noted]
    after = []
    for v, b, kept in zip(values, before, cuts, strict=True):
        sizes = [int(kept[dim].sum()) if dim in kept else size for dim, size in enumerate(v.shape)]
        after.append(torch.empty(sizes, dtype=b.dtype, device="meta"))
    node.meta["val"] = after if isinstance(noted, tuple | list) else after[0]


def _resize(graph: ChannelGraph, removed: Mask, source: fx.Node, node: fx.Node, result: CapturedModule) -> None:
    front: FxFrontEnd = graph.front_end
    rule, binding, op = front.ops[source.name]
    if rule.resize is None:
        return
    found = front.env[source]
    outputs = found if isinstance(found, list) else [found]
    inputs = {key: graph.cuts(v, removed) for key, v in op.inputs.items() if isinstance(v, Value)}
    changes = rule.resize(op, Cut(inputs, [graph.cuts(v, removed) for v in outputs]))
    if changes and binding.write is not None:
        changes = binding.write(changes, bind_arguments(node))
    for key, value in changes.items():
        _rewrite(result, node, binding.names.get(key, key), value)


def _rewrite(module: CapturedModule, node: fx.Node, name: str, value: Any) -> None:
    """Set an argument by its schema name; None inside a list leaves the old entry, arrays become constants."""
    old = bind_arguments(node)[name]
    if isinstance(value, list) and len(value) == len(old):
        merged = []
        for position, (was, new) in enumerate(zip(old, value, strict=True)):
            kept = new is None or (isinstance(was, int) and was == -1)
            if isinstance(was, fx.Node) and isinstance(new, int):
                merged.append(_scaled(node, was, new))
            else:
                merged.append(was if kept else _literal(module, node, f"{name}_{position}", new))
        value = merged
    elif isinstance(old, fx.Node) and isinstance(value, int):
        value = _scaled(node, old, value)
    else:
        value = _literal(module, node, name, value)
    assert isinstance(node.target, torch._ops.OpOverload)
    position = [argument.name for argument in node.target._schema.arguments].index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _scaled(node: fx.Node, size: fx.Node, new: int) -> fx.Node:
    """A size that depends on the batch (channels folded into the batch dimension), in the proportion it was cut."""
    old = concrete(size.meta["val"])
    common = gcd(old, new)
    graph = node.graph
    with graph.inserting_before(node):
        multiple = graph.call_function(operator.mul, (size, new // common))
        multiple.meta["val"] = size.meta["val"] * (new // common)
        scaled = graph.call_function(operator.floordiv, (multiple, old // common))
        scaled.meta["val"] = multiple.meta["val"] // (old // common)
    return scaled


def _literal(module: CapturedModule, node: fx.Node, name: str, value: Any) -> Any:
    """An argument as the graph can hold it: arrays become buffers."""
    value = value.after if isinstance(value, Recount) else value
    if not isinstance(value, np.ndarray):
        return value
    buffer = f"_{node.name}_{name}"
    module.register_buffer(buffer, torch.from_numpy(value))
    with module.graph.inserting_before(node):
        return module.graph.get_attr(buffer)
