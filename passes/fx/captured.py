"""A model as a captured graph: a module like any other, whose training mode is written into its operators."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

__all__ = ["CapturedModule", "TappedModule", "set_training", "switch_like"]

aten = torch.ops.aten

#: Operators that behave differently in training -> position and name of the argument that says so.
_TRAINING_ARGUMENT: dict[Any, tuple[int, str]] = {
    aten.batch_norm.default: (5, "training"),
    aten.instance_norm.default: (5, "use_input_stats"),
    **{getattr(aten, name).input: (6, "train") for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    aten.rrelu.default: (3, "training"),
    aten.rrelu_.default: (3, "training"),
    **{
        operator.default: (2, "train")
        for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
        for operator in (getattr(aten, name), getattr(aten, f"{name}_"))
    },
}


#: Normalizations that have only batch statistics when their running mean (argument 3) is absent.
_TRACKED: set[Any] = {aten.batch_norm.default, aten.instance_norm.default}


class CapturedModule(fx.GraphModule):
    """A model as a torch.fx graph of ATen operators.

    It is an `nn.Module` like any other: parameters keep the names they have in the original, `train()` and
    `eval()` switch the operators that differ, and it can be trained, copied, exported and saved.
    """

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """Inputs that the model takes, batch size 2 or more where the batch may vary."""
        return self.meta["example_inputs"]

    def inputs_of(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """What this module takes of the arguments of one call of the model: those that are tensors."""
        taken: tuple[Any, ...] = self.meta["arguments"].inputs(arguments) if "arguments" in self.meta else arguments
        return taken

    def train(self, mode: bool = True) -> "CapturedModule":
        """Switch batch norm, dropout and the like to training or to inference."""
        set_training(self, mode)
        super().train(mode)
        return self

    def __deepcopy__(self, memo: Any) -> "CapturedModule":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch copies its own tree specs by a deprecated path
            duplicate = super().__deepcopy__(memo)
        assert isinstance(duplicate, CapturedModule)
        return duplicate

    def with_taps(self, names: Sequence[str], instead: Sequence[str] | None = None) -> "TappedModule":
        """A module that shares these parameters and also returns the results of the named nodes.

        Args:
            names: of the nodes.
            instead: of those whose results it gives in place of the outputs; what nobody needs then is not computed.
        """
        return TappedModule(self, names, instead)


class TappedModule(nn.Module):
    """A captured model whose `forward` returns (outputs, [the results of some nodes])."""

    def __init__(self, source: CapturedModule, names: Sequence[str], instead: Sequence[str] | None = None) -> None:
        super().__init__()
        codegen: Any = source.graph._codegen
        info = codegen.pytree_info
        self._out_spec = info.out_spec if instead is None else None
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        returned = graph.graph_copy(source.graph, copied)
        by_name = {node.name: new for node, new in copied.items()}
        missing = [name for name in (*names, *(instead or ())) if name not in by_name]
        if missing:
            raise KeyError(f"no node named {missing[0]} in the captured graph")
        flat: list[Any] = pytree.tree_flatten(returned)[0] if instead is None else [by_name[name] for name in instead]
        graph.output((flat, [by_name[name] for name in names]))
        if instead is not None:
            graph.eliminate_dead_code()
        self.inner = fx.GraphModule(source, graph)
        self.training = source.training

    def train(self, mode: bool = True) -> "TappedModule":
        """Switch to training or inference."""
        set_training(self.inner, mode)
        super().train(mode)
        return self

    def forward(self, *inputs: Any) -> tuple[Any, list[torch.Tensor]]:
        """Outputs as the source gives them, then the taps in the order of their names."""
        flat, _ = pytree.tree_flatten((inputs, {}))
        outputs, taps = self.inner(*flat)
        return outputs if self._out_spec is None else pytree.tree_unflatten(outputs, self._out_spec), taps


def set_training(module: fx.GraphModule, mode: bool, *, norms_only: bool = False) -> bool:
    """Set the training argument of every operator that has one; recompiles, and returns True, if one was another.

    Args:
        module: a captured graph.
        mode: training or inference.
        norms_only: set that of normalizations with running statistics alone.
    """
    changed, concerned = False, _TRACKED if norms_only else _TRAINING_ARGUMENT
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in concerned:
            continue
        if node.target in _TRACKED and node.args[3] is None:
            continue  # no running statistics: batch statistics always
        position, name = _TRAINING_ARGUMENT[node.target]
        is_positional = len(node.args) > position
        # One that is left out is False: rrelu's.
        if (node.args[position] if is_positional else node.kwargs.get(name, False)) == mode:
            continue
        if is_positional:
            node.update_arg(position, mode)
        else:
            node.update_kwarg(name, mode)
        changed = True
    if changed:
        module.recompile()
    return changed


def switch_like(function: Callable[..., Any], operator: torch._ops.OpOverload) -> None:
    """Let `function`, which takes the place of `operator` in graphs, be set to training and inference as that is."""
    _TRAINING_ARGUMENT[function] = _TRAINING_ARGUMENT[operator]
    if operator in _TRACKED:
        _TRACKED.add(function)
