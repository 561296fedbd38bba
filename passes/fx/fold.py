"""Fold branches of which all channels went: what they compute is constant, and is added where it is not zero."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphprune.passes.channels.branches import Fate, Step
from graphprune.passes.channels.value import Value
from graphprune.passes.fx.captured import CapturedModule

aten = torch.ops.aten
_ADDS = (aten.add.Tensor, aten.add_.Tensor)
_RELUS = (aten.relu.default, aten.relu_.default)


def fold_branches(module: CapturedModule, fates: Mapping[str, tuple[Fate, Step]], sizes: Mapping[str, int]) -> None:
    """Replace branches by the constants that they compute, in place.

    Args:
        module: a captured graph in inference mode whose parameters are cut already.
        fates: node name -> what becomes of it.
        sizes: name of a node that sums over no channels -> channels that its result has.
    """
    constants: dict[fx.Node, torch.Tensor] = {}
    for node in list(module.graph.nodes):
        fate, step = fates.get(node.name, (None, None))
        if fate is None or step is None:
            continue
        if fate is Fate.HEAD:
            constants[node] = _bias(module, node, step, sizes[node.name])
        elif fate is Fate.CONSTANT:
            constants[node] = _evaluate(module, node, constants)
        elif fate is Fate.JOIN:
            _join(module, node, constants)
    _drop_unused(module, fates)


def condense_branches(module: CapturedModule, fates: Mapping[str, tuple[Fate, Step]], sizes: Mapping[str, int]) -> None:
    """Compute what is left of branches on two samples of one position, in place; for graphs that are trained on.

    What a branch adds is the same at every position, but not for good: the shift of its last normalization still
    learns. Two samples, because the variance of one is not defined in a batch norm; all statistics and all gradients
    are those of the whole branch with its channels at zero.

    Args:
        module: a captured graph whose parameters are cut already.
        fates: node name -> what becomes of it.
        sizes: name of a node that sums over no channels -> channels that its result has.
    """
    graph = module.graph
    condensed: set[fx.Node] = set()
    for node in list(graph.nodes):
        fate, step = fates.get(node.name, (None, None))
        if fate is None or step is None:
            continue
        if fate is Fate.HEAD:
            with graph.inserting_before(node):
                start = _live_bias(module, node, step, sizes[node.name])
                start = graph.call_function(aten.repeat.default, (start, [2] + [1] * (len(step.op.shape) - 1)))
            node.replace_all_uses_with(start)
            condensed.add(start)
        elif fate is Fate.CONSTANT:
            condensed.add(node)
        elif fate is Fate.JOIN:
            for source in [source for source in node.all_input_nodes if source in condensed]:
                if node.args[0] is source:  # one sample is not written to, and has not the size of the result
                    node.target = _out_of_place(node.target)
                with graph.inserting_before(node):
                    node.replace_input_with(source, graph.call_function(aten.slice.Tensor, (source, 0, 0, 1)))
    _drop_unused(module, fates)


def _live_bias(module: CapturedModule, node: fx.Node, step: Step, size: int) -> fx.Node:
    """What an operator gives that sums over nothing, as a node: shape (1, ..., channels, ..., 1)."""
    assert step.rule is not None
    assert step.rule.sums is not None
    shape = [1] * len(step.op.shape)
    shape[step.rule.sums(step.op)] = size
    if (source := _bias_node(node, step)) is not None:
        return module.graph.call_function(aten.view.default, (source, shape))
    name = f"_{node.name}_constant"
    if not hasattr(module, name):
        module.register_buffer(name, torch.zeros(shape, dtype=node.meta["val"].dtype))
    return module.graph.get_attr(name)


def _drop_unused(module: CapturedModule, fates: Mapping[str, tuple[Fate, Step]]) -> None:
    changed = True
    while changed:
        changed = module.graph.eliminate_dead_code()
        for node in reversed(list(module.graph.nodes)):  # operators in place count as used for that
            if fates.get(node.name, (Fate.JOIN, None))[0] is not Fate.JOIN and not node.users:
                module.graph.erase_node(node)
                changed = True


def _bias(module: CapturedModule, node: fx.Node, step: Step, size: int) -> torch.Tensor:
    """What an operator gives that sums over nothing: shape (1, ..., channels, ..., 1)."""
    assert step.rule is not None
    assert step.rule.sums is not None
    shape = [1] * len(step.op.shape)
    shape[step.rule.sums(step.op)] = size
    if (source := _bias_node(node, step)) is not None:
        return attribute(module, source).detach().reshape(shape).clone()
    return torch.zeros(shape, dtype=node.meta["val"].dtype)


def _bias_node(node: fx.Node, step: Step) -> fx.Node | None:
    value = step.op.inputs.get("bias")
    for source in node.all_input_nodes:
        if source.op == "get_attr" and isinstance(value, Value) and str(source.target) == value.parameter:
            return source
    return None


def attribute(module: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The parameter or buffer that a node stands for."""
    path, _, leaf = str(node.target).rpartition(".")
    tensor = getattr(module.get_submodule(path), leaf)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _evaluate(module: CapturedModule, node: fx.Node, constants: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
    def known(source: fx.Node) -> Any:
        return constants[source].clone() if source in constants else attribute(module, source)

    assert callable(node.target)
    with torch.no_grad():
        return node.target(*fx.map_arg(node.args, known), **fx.map_arg(node.kwargs, known))


def _out_of_place(target: Any) -> Any:
    name = target._schema.name.removeprefix("aten::")
    return getattr(getattr(aten, name.removesuffix("_")), target._overloadname) if name.endswith("_") else target


def _drop_repeated(node: fx.Node) -> None:
    """A relu that follows a relu does nothing; without the add between them, blocks have one."""
    for user in list(node.users):
        if node.target in _RELUS and user.target in _RELUS:
            user.replace_all_uses_with(node)
            user.graph.erase_node(user)


def _join(module: CapturedModule, node: fx.Node, constants: Mapping[fx.Node, torch.Tensor]) -> None:
    """Add the constant, or nothing where it is zero."""
    folded = [source for source in node.all_input_nodes if source in constants]
    staying = [source for source in node.args if isinstance(source, fx.Node) and source not in constants]
    plain = node.target in _ADDS and node.kwargs.get("alpha", 1) == 1
    if plain and len(staying) == 1 and not any(constants[source].any() for source in folded):
        node.replace_all_uses_with(staying[0])
        module.graph.erase_node(node)  # in place, it would count as used
        _drop_repeated(staying[0])
        return
    if node.args[0] in folded:  # a constant is not written to, and has not the size of the result
        node.target = _out_of_place(node.target)
    for source in folded:
        name = f"_{source.name}_constant"
        if not hasattr(module, name):
            module.register_buffer(name, constants[source])
        with module.graph.inserting_before(node):
            node.replace_input_with(source, module.graph.get_attr(name))
