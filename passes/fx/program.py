"""A module as a program of ATen operators, by torch.export, and its errors in words."""

from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.quiet import kept_quiet

#: What torch raises where a Python branch or a size hangs on the numbers in a tensor; their names are not public.
_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")


def export(model: nn.Module, example_inputs: tuple[Any, ...]) -> tuple[ExportedProgram, str]:
    """An ATen program of a module in inference mode, in which the batch may vary unless the module forbids it.

    And where torch refuses a batch that varies, its reason; else "".

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
        shapes = tuple({0: Dim.AUTO} if isinstance(x, torch.Tensor) and x.dim() > 1 else None for x in example_inputs)
        try:
            program = _quiet_export(model, example_inputs, shapes)
        except Exception as dynamic_error:  # torch.export raises in many types
            problem = _first_line(dynamic_error)
            try:
                program = _quiet_export(model, example_inputs, None)
            except Exception as error:
                raise CaptureError(_explain(error, model)) from error
        return program, problem
    finally:
        for module, training in modes.items():
            module.training = training


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
