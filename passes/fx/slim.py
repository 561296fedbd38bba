"""Mask and slim torch models, and prove that both agree.

`mask` sets the planned channels to zero and keeps all shapes; `slim` removes them. Slimming a user's
`nn.Module` cuts its parameters and the attributes that mirror sizes (`in_channels`, `groups`, ...). Sizes
in the module's own Python cannot be changed; where the cut module does not give what the masked one does,
the cut *captured graph* is returned instead, whose arguments can be.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from graphprune.passes.channels.exactness import exact_part, say_inexact
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError, VerificationError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.compare import compare_outputs, first_difference
from graphprune.passes.fx.cut import cut_graph, cut_tensors, named_tensors
from graphprune.passes.fx.device import CPU, device_of, inputs_on, to_device
from graphprune.passes.fx.mirrors import update_attributes
from graphprune.passes.fx.outputs import difference, run
from graphprune.passes.fx.plain import copy_on_cpu, plain_copy

logger = logging.getLogger("graphprune")

#: Largest difference allowed between masked and slim, relative to the largest value of a tensor (float32).
TOLERANCE = 1e-4
#: A difference up to this many tolerances may be rounding ...
_MAYBE_ROUNDING = 100
#: ... if in float64 it is this much smaller than the tolerance.
_ROUNDING_64 = 1e-4


def mask(model: nn.Module | ExportedProgram, plan: PruningPlan) -> nn.Module:
    """A copy of `model` with the planned channels set to zero: same shapes, same outputs as the slim model.

    Args:
        model: a module, a captured one, or an exported program, of which the copy is a captured module.
        plan: what to set to zero.

    Raises:
        PlanError: the plan was made for other shapes.
    """
    if isinstance(model, ExportedProgram):
        return mask(to_device(capture(model), _device_of(model)), plan)
    masked = plain_copy(model)
    tensors = named_tensors(masked)
    plan.check_fits({name: tuple(t.shape) for name, t in tensors.items()})
    with torch.no_grad():
        for name, dims in plan.removed.items():
            tensor = tensors[name]
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            for dim in dims:
                tensor.index_fill_(dim, torch.from_numpy(plan.gone[name, dim]).to(tensor.device), 0.0)
    return masked


def slim(
    model: nn.Module | ExportedProgram,
    plan: PruningPlan,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    graph: ChannelGraph | None = None,
    tolerance: float = TOLERANCE,
) -> nn.Module:
    """A new model without the planned channels, checked against the masked one; `model` is not touched.

    Args:
        model: a module, a captured one, or an exported program.
        plan: what to remove.
        example_inputs: real inputs to check with; without them, random ones of the shapes the plan names.
        graph: the channel graph of the model, if there is one already.
        tolerance: largest difference relative to the largest output.

    Where groups go that are not exact (statistics over channels, see `ChannelGraph.why_inexact`), the masked model
    computes something else. Then a model without the exact ones alone is checked, and the slim module against the slim
    captured graph; the log says how far that is from the masked model.

    Returns:
        A module of the same class where that is possible, else a `CapturedModule`; the log says which.

    Raises:
        PlanError: the plan does not fit the model or cuts coupled channels in part.
        VerificationError: masked and slim differ; names the first node that does.
    """
    device = _device_of(model)
    if isinstance(model, ExportedProgram):
        slimmed = slim(capture(model, example_inputs), plan, example_inputs, graph=graph, tolerance=tolerance)
        assert isinstance(slimmed, CapturedModule)
        return to_device(slimmed, device)
    inputs = inputs_on(CPU, example_inputs if example_inputs is not None else _random_inputs(model, plan))
    if device != CPU:
        slimmed = slim(copy_on_cpu(model), plan, inputs, graph=graph, tolerance=tolerance)
        return to_device(slimmed, device) if isinstance(slimmed, CapturedModule) else slimmed.to(device)
    if graph is None:
        graph = analyze(capture(model, inputs, share=True), whole_heads=plan.options.get("whole_heads", False))
    removed = graph.removed_by(plan)
    #: What captured graphs take of these inputs.
    taken = graph.front_end.module.inputs_of(inputs)
    inputs = taken if isinstance(model, CapturedModule) else inputs
    modes = _modes(model)
    masked = mask(model, plan).eval()
    cut_inexactly = None
    if inexact := say_inexact(graph, removed):
        _check_part(model, graph, exact_part(graph, removed), inputs, taken, tolerance)
        cut_inexactly = _cut_inexactly(run(masked, inputs), masked, graph, plan, removed, taken, inexact)
    if cut_inexactly is not None:
        reference = _Reference(run(cut_inexactly, taken), taken, lambda: copy.deepcopy(cut_inexactly))
    else:
        reference = _Reference(run(masked, inputs), inputs, lambda: mask(model, plan).eval())
    if graph.fates(removed):
        logger.info("the slim model is returned as a captured graph, because whole branches go")
    elif not isinstance(model, CapturedModule):
        problem = _cut_module(masked, graph, plan, removed, inputs, reference, tolerance)
        if not problem:
            return _restore(masked, modes)
        logger.info("the slim model is returned as a captured graph, because its class fixes sizes: %s", problem)
        if cut_inexactly is None:
            masked = mask(model, plan).eval()  # once more: holding what was cut would cost everybody memory
    if cut_inexactly is not None:
        return cut_inexactly.train(next(iter(modes.values()), False))
    tensors = named_tensors(masked)
    del masked
    captured = _cut_captured(graph, plan, removed, tensors, reference, taken, tolerance)
    return captured.train(next(iter(modes.values()), False))


@dataclass(frozen=True)
class _Reference:
    """What the slim model must compute.

    Attributes:
        outputs: of the masked model, or where inexact groups go of the slim captured graph.
        inputs: that it was run on.
        again: makes that model once more, for the few times when it must be run in another precision.
    """

    outputs: list[torch.Tensor]
    inputs: tuple[Any, ...]
    again: Callable[[], nn.Module]


def _cut_inexactly(
    before: list[torch.Tensor],
    masked: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    removed: Mask,
    inputs: tuple[Any, ...],
    inexact: str,
) -> CapturedModule:
    """The slim captured graph, of which only the form can be checked: what is removed changes statistics."""
    captured = cut_graph(graph, plan, removed, named_tensors(masked)).eval()
    after = run(captured, inputs)
    if [x.shape for x in before] != [x.shape for x in after]:
        raise VerificationError("the outputs of the slim model have other shapes than those of the model")
    worst = max((difference(a, b) for a, b in zip(before, after, strict=True)), default=0.0)
    logger.warning("%s: the slim model differs from the masked one by %.2g", inexact, worst)
    return captured


def _check_part(
    model: nn.Module,
    graph: ChannelGraph,
    part: Mask,
    inputs: tuple[Any, ...],
    taken: tuple[Any, ...],
    tolerance: float,
) -> None:
    """Raise VerificationError unless the model without the exact groups computes what it does with them at zero."""
    if not part.any():
        return
    plan = graph.plan(part)
    masked = mask(model, plan).eval()
    reference = _Reference(run(masked, inputs), inputs, lambda: mask(model, plan).eval())
    _cut_captured(graph, plan, part, named_tensors(masked), reference, taken, tolerance)


def _cut_captured(
    graph: ChannelGraph,
    plan: PruningPlan,
    removed: Mask,
    tensors: Mapping[str, torch.Tensor],
    reference: _Reference,
    inputs: tuple[Any, ...],
    tolerance: float,
) -> CapturedModule:
    """The slim captured graph, with tensors of the masked model; it computes what the reference does."""
    captured = cut_graph(graph, plan, removed, tensors).eval()
    try:
        _check(reference, captured, inputs, tolerance, "the slim model")
    except (RuntimeError, ValueError, IndexError, TypeError, VerificationError) as error:
        where = first_difference(graph, tensors, captured, removed, inputs, tolerance)
        if where:
            raise VerificationError(f"slim and masked model do not agree: {where}") from error
        raise
    return captured


def _cut_module(
    masked: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    removed: Mask,
    inputs: tuple[Any, ...],
    reference: _Reference,
    tolerance: float,
) -> str:
    """Cut the masked module in place; what is wrong with the result, or nothing."""
    cut_tensors(masked, plan)
    update_attributes(masked, graph, removed)
    try:
        _check(reference, masked, inputs, tolerance, "the slim module")
    except Exception as error:  # the model's own checks may raise anything
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return ""


def _check(reference: _Reference, candidate: nn.Module, inputs: tuple[Any, ...], tolerance: float, what: str) -> None:
    """Compare outputs; what may be rounding, which grows on its way through a deep network, is told in float64."""
    expected, outputs = reference.outputs, run(candidate, inputs)
    try:
        compare_outputs(expected, outputs, tolerance, what)
    except VerificationError:
        worst = max(map(difference, expected, outputs), default=0.0)
        if not worst <= _MAYBE_ROUNDING * tolerance or any(x.dtype == torch.float64 for x in expected):
            raise
        expected = run(reference.again().double(), _doubled(reference.inputs))
        outputs = run(copy.deepcopy(candidate).double(), _doubled(inputs))
        compare_outputs(expected, outputs, tolerance * _ROUNDING_64, what)


def _doubled(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)


def _device_of(model: nn.Module | ExportedProgram) -> torch.device:
    if isinstance(model, nn.Module):
        return device_of(model)
    return next((tensor.device for tensor in model.state_dict.values()), CPU)


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
