"""Dropout taken out of a captured network, for training and statistics that are to be those of inference."""

from torch import fx

__all__ = ["before_dropout", "bypass_dropout"]


def bypass_dropout(module: fx.GraphModule) -> None:
    """Let every dropout give what it is given, in training as well, in place."""
    for node in list(module.graph.nodes):
        if _is_dropout(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    module.recompile()


def before_dropout(node: fx.Node) -> fx.Node:
    """The node, or what is given to the dropouts that it is the last of."""
    while _is_dropout(node):
        node = node.all_input_nodes[0]
    return node


def _is_dropout(node: fx.Node) -> bool:
    return node.op == "call_function" and "dropout" in str(node.target)
