"""Raw heads of a captured graph: what the last layers with weights give, before it is decoded into outputs.

    layers with weights -> raw heads -> scaling by strides, adding anchors, joining, picking -> outputs

Decoding has nothing to learn, and puts pixels beside shares: one figure for all of it would be that of the pixels.
"""

from collections.abc import Sequence

import torch
from torch import fx, nn

from graphprune.passes.fx.ends import kind_of, value_of

__all__ = ["raw_heads"]

_LAYERS = frozenset(
    "linear addmm mm matmul bmm einsum convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d lstm gru rnn_tanh rnn_relu".split()
)
_NORMS = frozenset("batch_norm instance_norm layer_norm group_norm".split())
_SUMS = frozenset("add add_ sub mul div".split())
_JOINS = frozenset({"cat", "stack", "concat"})


def raw_heads(module: fx.GraphModule, output: fx.Node) -> list[fx.Node]:
    """The tensors to learn in place of an output, in the order of the graph: its raw heads, or the output itself.

    It is the output itself where nothing is decoded: one head that numbers of the network alone are made of, or several
    whose sum it is; and where the heads do not say all of it, as behind a shortcut.
    """
    layers, between = _last_layers(module, output)
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    heads = sorted({_whole(module, layer) for layer in _without_earlier(layers)}, key=order.__getitem__)
    behind = between - set(heads)
    is_joined = len(heads) > 1 and any(kind_of(node) in _JOINS for node in behind)
    is_decoded = any(_literal(module, source) for node in behind for source in node.all_input_nodes)
    decoded = is_joined or is_decoded or not _is_float(output)
    return heads if heads and decoded and _covers(heads, output) and all(map(_is_float, heads)) else [output]


def _is_float(node: fx.Node) -> bool:
    value = value_of(node)
    return value is not None and value.is_floating_point()


def _last_layers(module: fx.GraphModule, output: fx.Node) -> tuple[list[fx.Node], set[fx.Node]]:
    """The layers with weights that are met first on the way back, and everything on the way to them."""
    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node in seen or node.op != "call_function":
            continue
        if _is_layer(module, node):
            found[node] = None
            continue
        seen.add(node)
        waiting += node.all_input_nodes
    return list(found), seen


def _is_layer(module: fx.GraphModule, node: fx.Node) -> bool:
    return kind_of(node) in _LAYERS and any(_literal(module, source) for source in node.all_input_nodes)


def _literal(module: fx.GraphModule, node: fx.Node) -> bool:
    """Is it several numbers that the network holds?"""
    if node.op != "get_attr":
        return node.op == "call_function" and bool(node.all_input_nodes) and _is_made_of_literals(module, node)
    held = _held(module, node)
    return held is not None and held.is_floating_point() and held.numel() > 1


def _is_made_of_literals(module: fx.GraphModule, node: fx.Node) -> bool:
    """Is it a weight that is reshaped, or the like, before it is used?"""
    seen: set[fx.Node] = set()
    waiting, has_any = [node], False
    while waiting:
        at = waiting.pop()
        if at.op == "placeholder":
            return False
        if at in seen:
            continue
        seen.add(at)
        has_any |= at.op == "get_attr" and _literal(module, at)
        waiting += at.all_input_nodes
    return has_any


def _held(module: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    owner, _, name = str(node.target).rpartition(".")
    found = getattr(module.get_submodule(owner) if owner else module, name, None)
    return found if isinstance(found, nn.Parameter | torch.Tensor) else None


def _without_earlier(layers: Sequence[fx.Node]) -> list[fx.Node]:
    """Those of the layers that none of the others comes after."""
    found = set(layers)
    earlier: set[fx.Node] = set()
    waiting = [source for layer in layers for source in layer.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node not in earlier:
            earlier.add(node)
            waiting += node.all_input_nodes
    return [layer for layer in layers if layer in found and layer not in earlier]


def _whole(module: fx.GraphModule, layer: fx.Node) -> fx.Node:
    """The layer with the bias or norm behind it that belongs to it: one number for each of its channels."""
    while len(layer.users) == 1:
        (user,) = layer.users
        value = value_of(layer)
        others = [source for source in user.all_input_nodes if source is not layer]
        if value is None or not others:
            break
        kind = kind_of(user)
        channels = {value.shape[dim] for dim in (1, -1) if value.ndim > 1}
        is_bias = kind in _SUMS and all(_literal(module, s) and _numbers(s) in channels for s in others)
        if not (is_bias or kind in _NORMS):
            break
        layer = user
    return layer


def _numbers(node: fx.Node) -> int:
    value = value_of(node)
    return 0 if value is None else value.numel()


def _covers(heads: Sequence[fx.Node], output: fx.Node) -> bool:
    """Does all that the output has of the inputs come through the heads?"""
    seen = set(heads)
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return False
        if node not in seen:
            seen.add(node)
            # Sizes alone are no numbers of the input.
            waiting += [source for source in node.all_input_nodes if value_of(source) is not None]
    return True
