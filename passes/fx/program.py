"""A module as a program of ATen operators, by torch.export, and its errors in words."""

from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.quiet import kept_quiet
from graphprune.passes.fx.sizes import free_sizes

#: What torch raises where a Python branch or a size hangs on the numbers in a tensor; their names are not public.
_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")


def export(model: nn.Module, example_inputs: tuple[Any, ...]) -> tuple[ExportedProgram, str]:
    """An ATen program of a module in inference mode, in which the batch may vary unless the module forbids it.

    So may other sizes, where the module is a captured graph that leaves them free. And where torch refuses one of them,
    its reason; else "".

    Args:
        model: without hooks and the like; see `plain_copy`.
        example_inputs: by position.

    Raises:
        CaptureError: torch.export cannot capture the model; the message names the source line.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        problem = ""
        for shapes in _attempts(model, example_inputs):
            try:
                return _quiet_export(model, example_inputs, shapes), problem
            except Exception as error:  # torch.export raises in many types
                if shapes is None:
                    raise CaptureError(_explain(error, model)) from error
                problem = problem or _first_line(error)
        raise AssertionError("the last attempt leaves no size free")
    finally:
        for module, training in modes.items():
            module.training = training


def _attempts(model: nn.Module, example_inputs: tuple[Any, ...]) -> list[Any]:
    """The sizes that may vary, as torch.export wants them: as many as can be, the batch alone, none."""
    tensors = [x if isinstance(x, torch.Tensor) else torch.tensor(0) for x in example_inputs]
    size = next((x.shape[0] for x in tensors if x.dim() > 1), None)
    # Of one dimension: a number for each sample, or else something that all share.
    batch = [{0} if x.dim() > 1 or (x.dim() == 1 and x.shape[0] == size) else set[int]() for x in tensors]
    free = free_sizes(model.graph) if isinstance(model, fx.GraphModule) else []
    every = [own | {*more} for own, more in zip(batch, free, strict=False)]
    found = [every, batch] if len(every) == len(batch) and every != batch else [batch]
    return [*(tuple(dict.fromkeys(dims, Dim.AUTO) or None for dims in shapes) for shapes in found), None]


def _quiet_export(model: nn.Module, example_inputs: tuple[Any, ...], shapes: Any) -> ExportedProgram:
    with torch.no_grad(), kept_quiet():
        return torch.export.export(model, example_inputs, dynamic_shapes=shapes, strict=False)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _explain(error: Exception, model: nn.Module) -> str:
    text = _first_line(error)
    frame = None
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/torch/" not in name and "graphprune" not in name:
            frame = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    where = f" at {frame}" if frame else ""
    if type(error).__name__ in _DATA_DEPENDENT:
        text = (
            "what is computed there depends on the numbers in a tensor, and a graph has one way only; take torch.where "
            f"instead of a branch ({text})"
        )
    return f"torch.export cannot capture {type(model).__name__}{where}: {text}"
