"""Arguments that a program was exported with and that are no tensors: flags, numbers, None.

torch.export writes their values into the graph, and goes on asking for them as inputs. Here they are none: what is left
are the arguments that hold tensors, by position, those that were passed by name behind the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

__all__ = ["Arguments", "arguments_of", "without_constants"]


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a program.

    Attributes:
        positional: for each of them, whether it is an input.
        named: for each that goes by name, the same.
    """

    positional: tuple[bool, ...]
    named: Mapping[str, bool]

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """Those of the arguments that are inputs; what is no whole call, inputs alone for instance, stays as it is."""
        kwargs = kwargs or {}
        if len(args) != len(self.positional) or kwargs.keys() != self.named.keys():
            return args
        kept = [value for value, is_input in zip(args, self.positional, strict=True) if is_input]
        return (*kept, *(kwargs[name] for name, is_input in self.named.items() if is_input))


def arguments_of(program: ExportedProgram) -> Arguments:
    """Which arguments of a program hold tensors, or numbers that may vary."""
    args, kwargs = _structure(program)
    return Arguments(
        tuple(_is_input(argument) for argument in args), {name: _is_input(value) for name, value in kwargs.items()}
    )


def without_constants(program: ExportedProgram, module: fx.GraphModule) -> None:
    """Take the arguments that are no inputs off the module of a program, in place; others come by position."""
    args, kwargs = _structure(program)
    kept = tuple(argument for argument in (*args, *kwargs.values()) if _is_input(argument))
    if len(kept) == len(args) and not kwargs:
        return
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    by_leaf = dict(zip(map(id, pytree.tree_leaves((args, kwargs))), placeholders, strict=True))
    names = [by_leaf[id(pytree.tree_leaves(argument)[0])].name for argument in kept]
    left = {id(leaf) for leaf in pytree.tree_leaves(kept)}
    for node, leaf in zip(placeholders, pytree.tree_leaves((args, kwargs)), strict=True):
        if id(leaf) not in left:
            _write_in(node, leaf.value)
            graph.erase_node(node)
    codegen: Any = graph._codegen
    in_spec = pytree.tree_structure((kept, {}))
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, in_spec, codegen.pytree_info.out_spec)))
    module.recompile()


def _write_in(node: fx.Node, value: Any) -> None:
    """Let whoever reads a node have a value instead; torch has written it wherever it counts."""

    def read(used: fx.Node) -> Any:
        return value if used is node else used

    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), read)


class _Leaf:
    """One leaf of the arguments; a constant has a value."""

    def __init__(self, argument: Any) -> None:
        self.is_constant = isinstance(argument, ConstantArgument)
        self.value = getattr(argument, "value", None)


def _structure(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments, with leaves in place of what they hold."""
    specs = program.graph_signature.input_specs
    leaves = [_Leaf(spec.arg) for spec in specs if spec.kind is InputKind.USER_INPUT]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return tuple(args), dict(kwargs)


def _is_input(argument: Any) -> bool:
    return any(not leaf.is_constant for leaf in pytree.tree_leaves(argument))
