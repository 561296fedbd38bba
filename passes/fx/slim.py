"""Mask and slim torch models, and prove that both agree.

`mask` sets the planned channels to zero and keeps all shapes; `slim` removes them. Slimming a user's
`nn.Module` cuts its parameters and the attributes that mirror sizes (`in_channels`, `groups`, ...). Sizes
in the module's own Python cannot be changed; where the cut module does not give what the masked one does,
the cut *captured graph* is returned instead, whose arguments can be.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError, VerificationError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import CapturedModule, capture
from graphprune.passes.fx.compare import compare_outputs, first_difference, run
from graphprune.passes.fx.cut import cut_graph, cut_tensors, named_tensors
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
    tensors = named_tensors(masked)
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
        graph = analyze(capture(model, inputs), whole_heads=plan.options.get("whole_heads", False))
    removed = graph.removed_by(plan)
    modes = _modes(model)
    masked = mask(model, plan).eval()
    reference = run(masked, inputs)
    whole_branches = bool(graph.fates(removed))
    if whole_branches:
        logger.info("the slim model is returned as a captured graph, because whole branches go")
    elif not isinstance(model, CapturedModule):
        cut, problem = _try_module(masked, graph, plan, removed, inputs, reference, tolerance)
        if cut is not None:
            return _restore(cut, modes)
        logger.info("the slim model is returned as a captured graph, because its class fixes sizes: %s", problem)
    tensors = named_tensors(masked)
    captured = cut_graph(graph, plan, removed, tensors).eval()
    try:
        compare_outputs(reference, run(captured, inputs), tolerance, "the slim model")
    except (RuntimeError, ValueError, IndexError, TypeError, VerificationError) as error:
        where = first_difference(graph, tensors, captured, removed, inputs, tolerance)
        if where:
            raise VerificationError(f"slim and masked model do not agree: {where}") from error
        raise
    return captured.train(next(iter(modes.values()), False))


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
