"""Take operators apart that have no rule, into ones that do.

Most of what torch offers is made of simpler operators, and torch knows how: `vstack` is a concatenation, `gru_cell` two
linear layers and gates. A node without a rule gives way to what it is made of, if all of that has rules; otherwise
it stays, and is reported by its own name.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

Known = Callable[[Any], bool]

#: What a block under `torch.autocast(..., enabled=False)` is exported as: outside of autocast it changes nothing.
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def decompose(module: fx.GraphModule, known: Known) -> None:
    """Replace nodes of `module` that `known` says no rule exists for, where that leaves only ones with rules.

    Args:
        module: a captured graph, changed in place; not recompiled.
        known: does an operator have a rule?
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or known(node.target):
            continue
        parts = _plain_block(module, node) if node.target is _AUTOCAST else _parts(node, known)
        if parts is not None:
            _splice(node, *parts)


def _plain_block(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Graph, list[Any]] | None:
    """The graph inside a block without autocast, and what it is called with."""
    _, _, enabled, _, body, *operands = node.args
    if enabled or not isinstance(body, fx.Node):
        return None
    inner = module.get_submodule(str(body.target))
    assert isinstance(inner, fx.GraphModule)
    return None if any(part.op == "get_attr" for part in inner.graph.nodes) else (inner.graph, operands)


def _parts(node: fx.Node, known: Known) -> tuple[fx.Graph, list[Any]] | None:
    """The graph that a node is made of, and what it is called with; None where torch does not know, or no rule does."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten" or target._schema.is_mutable:
        return None
    function = decomposition_table.get(target)
    if function is None and target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        function = target.decompose
    flat, spec = pytree.tree_flatten((node.args, node.kwargs))
    operands = [item for item in flat if isinstance(item, fx.Node)]
    values = [operand.meta.get("val") for operand in operands]
    if function is None or not all(isinstance(value, torch.Tensor) for value in values):
        return None

    def run(*tensors: torch.Tensor) -> Any:
        left = iter(tensors)
        args, kwargs = pytree.tree_unflatten([next(left) if isinstance(x, fx.Node) else x for x in flat], spec)
        return function(*args, **kwargs)

    try:
        with torch.no_grad():
            graph = make_fx(run)(*values).graph
    except Exception:  # whatever a decomposition stumbles over: the operator stays as it is
        return None
    graph.eliminate_dead_code()
    inner = [part for part in graph.nodes if part.op not in ("placeholder", "output")]
    return (graph, operands) if all(known(part.target) or part.target is operator.getitem for part in inner) else None


def _splice(node: fx.Node, graph: fx.Graph, operands: list[Any]) -> None:
    """Put a copy of `graph` in the place of a node, with the node's own source line."""
    copied = dict(zip((n for n in graph.nodes if n.op == "placeholder"), operands, strict=True))
    with node.graph.inserting_before(node):
        result = node.graph.graph_copy(graph, copied)
    for part, copy in copied.items():
        if part.op != "placeholder":
            copy.meta = {**node.meta, "val": part.meta.get("val")}
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        results: Any = result
        for user in list(node.users):  # operator.getitem: one of several results
            user.replace_all_uses_with(results[user.args[1]])
            user.graph.erase_node(user)
    node.graph.erase_node(node)
