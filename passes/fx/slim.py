"""Mask and slim torch models, and prove that both agree.

`mask` sets the planned channels to zero and keeps all shapes; `slim` removes them. Slimming a user's
`nn.Module` cuts its parameters and the attributes that mirror sizes (`in_channels`, `groups`, ...). Sizes
in the module's own Python cannot be changed; where the cut module does not give what the masked one does,
the cut *captured graph* is returned instead, whose arguments can be.
"""

import copy
import logging
import operator
from collections.abc import Mapping
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from graphprune.passes.channels.analysis import Cut
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.channels.value import Value
from graphprune.passes.errors import PlanError, VerificationError
from graphprune.passes.fx.analyze import FxFrontEnd, analyze, bind_arguments, concrete
from graphprune.passes.fx.capture import CapturedModule, capture, refresh_shapes
from graphprune.passes.fx.mirrors import update_attributes

logger = logging.getLogger("graphprune")

#: Largest difference allowed between masked and slim, relative to the largest value of a tensor (float32).
TOLERANCE = 1e-4


def mask(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of `model` with the planned channels set to zero: same shapes, same outputs as the slim model.

    Raises:
        PlanError: the plan was made for other shapes.
    """
    masked = copy.deepcopy(model)
    tensors = _tensors(masked)
    plan.check_fits({name: tuple(t.shape) for name, t in tensors.items()})
    with torch.no_grad():
        for name, dims in plan.removed.items():
            tensor = tensors[name]
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            for dim, indices in dims.items():
                tensor.index_fill_(dim, torch.tensor(indices, device=tensor.device), 0.0)
    return masked


def slim(
    model: nn.Module,
    plan: PruningPlan,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    graph: ChannelGraph | None = None,
    tolerance: float = TOLERANCE,
) -> nn.Module:
    """A new model without the planned channels, checked against the masked one; `model` is not touched.

    Args:
        model: a module or a captured one.
        plan: what to remove.
        example_inputs: real inputs to check with; without them, random ones of the shapes the plan names.
        graph: the channel graph of the model, if there is one already.
        tolerance: largest difference relative to the largest output.

    Returns:
        A module of the same class where that is possible, else a `CapturedModule`; the log says which.

    Raises:
        PlanError: the plan does not fit the model or cuts coupled channels in part.
        VerificationError: masked and slim differ; names the first node that does.
    """
    inputs = example_inputs if example_inputs is not None else _random_inputs(model, plan)
    if graph is None:
        graph = analyze(capture(model, inputs))
    removed = graph.removed_by(plan)
    modes = _modes(model)
    masked = mask(model, plan).eval()
    reference = run(masked, inputs)
    if not isinstance(model, CapturedModule):
        cut, problem = _try_module(masked, graph, plan, removed, inputs, reference, tolerance)
        if cut is not None:
            return _restore(cut, modes)
        logger.info("the slim model is returned as a captured graph, because its class fixes sizes: %s", problem)
    captured = slim_graph(graph, plan, removed, masked)
    _verify_graph(graph, masked, captured, removed, inputs, tolerance)
    compare_outputs(reference, run(captured, inputs), tolerance, "the slim model")
    return captured.train(next(iter(modes.values()), False))


def slim_graph(graph: ChannelGraph, plan: PruningPlan, removed: Mask, weights: nn.Module) -> CapturedModule:
    """The captured graph with parameters of `weights` cut and arguments that repeat sizes rewritten."""
    front: FxFrontEnd = graph.front_end
    result = copy.deepcopy(front.module)
    _take_weights(result, weights)
    nodes = {node.name: node for node in result.graph.nodes}
    for name, (rule, binding, op) in front.ops.items():
        if rule.resize is None:
            continue
        cut = Cut(
            {key: graph.cuts(v, removed) for key, v in op.inputs.items() if isinstance(v, Value)},
            [graph.cuts(v, removed) for v in _results(front, name)],
        )
        changes = rule.resize(op, cut)
        if changes and binding.write is not None:
            changes = binding.write(changes, {**bind_arguments(nodes[name])})
        for key, value in changes.items():
            _rewrite(result, nodes[name], binding.names.get(key, key), value)
    cut_tensors(result, plan)
    result.recompile()
    refresh_shapes(result)
    return result


def _take_weights(captured: CapturedModule, source: nn.Module) -> None:
    """Copy parameters and buffers by name; constants that only the captured graph has stay."""
    tensors = _tensors(source)
    with torch.no_grad():
        for name, tensor in _tensors(captured).items():
            if name in tensors:
                tensor.copy_(tensors[name])


def _results(front: FxFrontEnd, name: str) -> list[Value]:
    for node, value in front.env.items():
        if node.name == name:
            return value if isinstance(value, list) else [value]
    return []


def _rewrite(module: CapturedModule, node: fx.Node, name: str, value: Any) -> None:
    """Set an argument by its schema name; None inside a list leaves the old entry, arrays become constants."""
    old = bind_arguments(node)[name]
    if isinstance(value, list) and len(value) == len(old):
        merged = []
        for position, (was, new) in enumerate(zip(old, value, strict=True)):
            kept = new is None or (isinstance(was, int) and was == -1)
            if isinstance(was, fx.Node):
                merged.append(was if kept else _scaled(node, was, new))
            else:
                merged.append(was if kept else _literal(module, node, f"{name}_{position}", new))
        value = merged
    else:
        value = _literal(module, node, name, value)
    position = [argument.name for argument in node.target._schema.arguments].index(name)  # type: ignore[union-attr]
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
        return graph.call_function(operator.floordiv, (multiple, old // common))


def _literal(module: CapturedModule, node: fx.Node, name: str, value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    buffer = f"_{node.name}_{name}"
    module.register_buffer(buffer, torch.from_numpy(value))
    with module.graph.inserting_before(node):
        return module.graph.get_attr(buffer)


def cut_tensors(module: nn.Module, plan: PruningPlan) -> None:
    """Slice every planned parameter and buffer of `module` in place; tied tensors stay tied.

    A tied tensor may go by another name in the plan than under the path that is come to first.
    """
    planned = {id(tensor): (name, tensor) for name, tensor in _tensors(module).items() if name in plan.removed}
    cut = {key: _cut_tensor(tensor, plan, name) for key, (name, tensor) in planned.items()}
    for owner in module.modules():
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for table in tables:
            for leaf, tensor in table.items():
                if id(tensor) in cut:
                    table[leaf] = cut[id(tensor)]


def _cut_tensor(tensor: torch.Tensor, plan: PruningPlan, name: str) -> torch.Tensor:
    result = tensor.detach()
    for dim in plan.removed[name]:
        kept = torch.from_numpy(np.flatnonzero(plan.kept(name, dim, tensor.shape[dim]))).to(tensor.device)
        result = result.index_select(dim, kept)
    result = result.clone()
    return nn.Parameter(result, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result


def _try_module(
    masked: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    removed: Mask,
    inputs: tuple[Any, ...],
    reference: list[torch.Tensor],
    tolerance: float,
) -> tuple[nn.Module | None, str]:
    cut = copy.deepcopy(masked)
    cut_tensors(cut, plan)
    update_attributes(cut, graph, removed)
    try:
        outputs = run(cut, inputs)
        compare_outputs(reference, outputs, tolerance, "the slim module")
    except Exception as error:  # the model's own checks may raise anything
        return None, next(iter(str(error).splitlines()), type(error).__name__)
    return cut, ""


def run(model: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors that a model gives, flat, without gradients; the model's mode is kept."""
    with torch.no_grad():
        outputs = model(*inputs)
    flat, _ = pytree.tree_flatten(outputs)
    return [x for x in flat if isinstance(x, torch.Tensor)]


def difference(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference relative to the largest reference value; infinite for other shapes, NaN or Inf."""
    if reference.shape != other.shape:
        return float("inf")
    if reference.numel() == 0:
        return 0.0
    if not (reference.is_floating_point() or reference.is_complex()):
        return 0.0 if torch.equal(reference, other) else float("inf")
    if not (torch.isfinite(reference).all() and torch.isfinite(other).all()):
        same = torch.equal(torch.nan_to_num(reference), torch.nan_to_num(other))
        return 0.0 if same and torch.equal(reference.isnan(), other.isnan()) else float("inf")
    scale = max(float(reference.abs().max()), 1e-12)
    return float((reference - other).abs().max()) / scale


def compare_outputs(reference: list[torch.Tensor], outputs: list[torch.Tensor], tolerance: float, what: str) -> float:
    """The largest difference over all outputs.

    Raises:
        VerificationError: it is above `tolerance`.
    """
    if len(reference) != len(outputs):
        raise VerificationError(f"{what} gives {len(outputs)} outputs, the masked model {len(reference)}")
    worst = max((difference(a, b) for a, b in zip(reference, outputs, strict=True)), default=0.0)
    if not worst <= tolerance:
        raise VerificationError(f"{what} differs from the masked model by {worst:.3g} (allowed {tolerance:g})")
    return worst


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every tensor by node name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.seen[n.name] = result
        return result


def _verify_graph(
    graph: ChannelGraph,
    masked: nn.Module,
    cut: CapturedModule,
    removed: Mask,
    inputs: tuple[Any, ...],
    tolerance: float,
) -> None:
    """Raise VerificationError naming the first node at which the cut graph leaves the masked one."""
    front: FxFrontEnd = graph.front_end
    whole = copy.deepcopy(front.module)
    _take_weights(whole, masked)
    before, after = _Recorder(whole), _Recorder(cut)
    flat, _ = pytree.tree_flatten((inputs, {}))
    with torch.no_grad():
        before.run(*flat, enable_io_processing=False)
        try:
            after.run(*flat, enable_io_processing=False)
        except RuntimeError as error:
            raise VerificationError(
                f"the slim graph fails after node {list(after.seen)[-1] if after.seen else '(start)'}: "
                f"{str(error).splitlines()[0]}"
            ) from error
    for node in front.module.graph.nodes:
        value = front.env.get(node)
        if node.op != "call_function" or not isinstance(value, Value) or node.name not in after.seen:
            continue
        expected, found = before.seen[node.name], after.seen[node.name]
        if not isinstance(expected, torch.Tensor):
            continue
        for dim, kept in graph.cuts(value, removed).items():
            expected = expected.index_select(dim, torch.from_numpy(np.flatnonzero(kept)))
        worst = difference(expected, found)
        if not worst <= tolerance:
            where = front.ops[node.name][2].where if node.name in front.ops else node.name
            raise VerificationError(
                f"slim and masked model differ first at node {node.name} ({where}): by {worst:.3g}, allowed "
                f"{tolerance:g}; shapes {tuple(expected.shape)} and {tuple(found.shape)}"
            )


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def _restore(model: nn.Module, modes: Mapping[str, bool]) -> nn.Module:
    for name, module in model.named_modules():
        module.training = modes.get(name, False)
    return model


def _random_inputs(model: nn.Module, plan: PruningPlan) -> tuple[Any, ...]:
    if isinstance(model, CapturedModule):
        return model.example_inputs
    if not plan.inputs:
        raise PlanError("the plan does not say the shapes of the model's inputs: pass example_inputs")
    generator = torch.Generator().manual_seed(0)
    made = []
    for item in plan.inputs:
        dtype = getattr(torch, item["dtype"])
        if dtype.is_floating_point:
            made.append(torch.randn(item["shape"], generator=generator).to(dtype))
        else:
            made.append(torch.zeros(item["shape"], dtype=dtype))
    return tuple(made)
