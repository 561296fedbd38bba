"""Writing a torch model as an ONNX file that onnxruntime runs well on a CPU.

The file has a symbolic batch dimension called "batch" wherever the model allows it, symbolic "height" and "width" where
the model is a graph that was captured so, normalization folded into the
convolution before it, stable names for inputs and outputs, no denormal weights (one that is 1e-39 instead of 0
makes a convolution 22 times slower), and nothing that takes a residual Add out of onnxruntime's blocked layout
(`passes/onnx/layout.py`). What each of these brings is measured in benchmarks/latency/export.py. Before the file gets
its name it is run in onnxruntime at several batch sizes and compared with the model.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as ir_passes
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from graphprune.formats.files import refuse_overwrite
from graphprune.formats.onnx_files import written
from graphprune.passes.errors import CaptureError, UnsupportedModelError, VerificationError
from graphprune.passes.fx.arguments import arguments_of
from graphprune.passes.fx.capture import capture, module_of
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.device import CPU, device_of
from graphprune.passes.fx.fake_quantize import on_the_grid
from graphprune.passes.fx.operators import translations
from graphprune.passes.fx.plain import copy_on_cpu, observes
from graphprune.passes.fx.quiet import kept_quiet
from graphprune.passes.fx.sizes import free_sizes, inputs_of_other_sizes
from graphprune.passes.onnx.clean import ZeroDenormalsPass
from graphprune.passes.onnx.layout import GlobalPoolPass, SelectChannelsPass, ShiftPass
from graphprune.runtime.onnx_session import one_line
from graphprune.runtime.torch_mode import evaluation
from graphprune.verification.verify import require_equal, rounds_in_between
from graphprune.version import __version__

__all__ = ["export_onnx"]

logger = logging.getLogger("graphprune")

# Opset 20 with IR version 10 is what every onnxruntime from 1.18 on reads; nothing a CNN needs is newer.
OPSET = 20
# Deep networks in float32 differ by 1e-6 or so between torch and onnxruntime.
EXPORT_RTOL = 1e-4
BATCHES = (1, 2, 5)
_IMAGE_RANK = 4  # batch, channels, height, width


def export_onnx(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Export `model` in evaluation mode to an ONNX file and return its path.

    Args:
        model: A module, a captured module, or an exported program, on any device. Its training mode is left as it was.
        example_inputs: The arguments of one call, as a tuple; any batch size. Flags and the like, which are no tensors,
            get their values for good.
        path: Where the file goes. Nothing is written when the export or its check fails.
        force: Replace an existing file.
        opset: ONNX opset version; by default one that every supported onnxruntime reads.
        metadata: Entries for the file's metadata (what was compressed, from which file, ...).

    Raises:
        OutputExistsError: The file exists and `force` is false.
        CaptureError: The model does not run on the example inputs, or `torch.export` cannot capture it.
        UnsupportedModelError: An operator of the model has no ONNX counterpart.
        VerificationError: The file does not compute what the model does.
    """
    final = Path(path)
    refuse_overwrite(final, force)
    module, inputs = _with_tensors_alone(model, tuple(example_inputs))
    if device_of(module) != CPU:
        module = copy_on_cpu(module)
    if isinstance(module, fx.GraphModule):
        module = on_the_grid(module)
    with evaluation(module), torch.no_grad():
        cases = _cases(module, _tensors(inputs))
        program, cases = _export(module, cases, opset or OPSET)
        onnx_model = _tidy(program, metadata or {})
        with written(onnx_model, final) as temporary:
            _check(module, temporary, cases, str(final))
    logger.debug("wrote %s", final)
    return final


def _with_tensors_alone(model: nn.Module | ExportedProgram, inputs: tuple[Any, ...]) -> tuple[nn.Module, Any]:
    """A module and its inputs without flags and other arguments that are no tensors: a graph has their values in it."""
    if isinstance(model, ExportedProgram):
        return module_of(model), arguments_of(model).inputs(inputs)
    if isinstance(model, CapturedModule):
        return model, model.inputs_of(inputs)
    if all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(inputs)) and not observes(model):
        return model, inputs
    captured = capture(model, inputs, share=True)
    return captured, captured.inputs_of(inputs)


def _tensors(example_inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    for at, item in enumerate(example_inputs):
        if not isinstance(item, torch.Tensor):
            raise UnsupportedModelError(f"example input {at} is a {type(item).__name__}; only tensors can be exported")
    return tuple(item.detach().to(CPU) for item in example_inputs)


def _cases(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Return inputs of several sizes that the model runs on; only the example itself if it takes no other.

    The batch is dimension 0 of the first input; every input with as many entries there is taken to carry it. Other
    sizes vary where the model is a captured graph that leaves them free; the last case has such ones.
    """
    try:
        with kept_quiet():
            module(*inputs)
    except Exception as error:  # The model's own code may raise anything.
        raise CaptureError(f"the model does not run on the example inputs: {_reason(error)}") from error
    size = inputs[0].shape[0] if inputs and inputs[0].ndim else None
    if size is None:
        return [inputs]
    others = [_with_batch(inputs, batch) for batch in BATCHES]
    try:
        with kept_quiet():
            for case in others:
                module(*case)
    except Exception as error:  # As above; here it only says that the batch is fixed.
        logger.warning("the model takes a batch of %d alone (%s); so will the ONNX file", size, _reason(error))
        return [inputs]
    return [inputs, *others, *_other_sizes(module, _with_batch(inputs, 2))]


def _with_batch(inputs: tuple[torch.Tensor, ...], batch: int) -> tuple[torch.Tensor, ...]:
    size = inputs[0].shape[0]
    return tuple(x[torch.arange(batch) % size] if x.ndim and x.shape[0] == size else x for x in inputs)


def _other_sizes(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Inputs of another height and width, and so on, that the model takes; none where it does not leave them free."""
    problem = ""
    for case in inputs_of_other_sizes(module.graph, inputs) if isinstance(module, fx.GraphModule) else ():
        try:
            with kept_quiet():
                module(*case)
            return [case]
        except Exception as error:  # As above.
            problem = problem or _reason(error)
    if problem:
        logger.warning("the model was captured for any height and width, but takes no others here: %s", problem)
    return []


def _export(
    module: nn.Module, cases: list[tuple[torch.Tensor, ...]], opset: int
) -> tuple[torch.onnx.ONNXProgram, list[tuple[torch.Tensor, ...]]]:
    """Export with as many free sizes as the cases have and the capture allows; return what holds for it."""
    example, *others = cases
    problem = ""
    for found in _attempts(others):
        try:
            with kept_quiet():  # A batch of 1 would be taken for a constant, hence the second of the others.
                free = _free(module, found, batch_alone=len(found) == len(BATCHES))
                done = _to_onnx(_free_program(module, others[1], free), opset)
        except Exception as error:  # The capture runs the model's code, and fails in many types.
            problem = problem or _reason(error)
            logger.debug("the export with free sizes failed: %s", _reason(error))
            continue
        if len(found) < len(others):
            logger.warning("the ONNX file takes one height and width, others are not possible: %s", problem)
        return done, found
    try:
        with kept_quiet():
            done = _to_onnx(torch.export.export(module, example, strict=False), opset)
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise CaptureError(f"torch.export cannot capture the model: {_reason(error)}") from error
    if problem:
        logger.warning("the ONNX file has a fixed batch, a free one is not possible: %s", problem)
    return done, [example]


def _free_program(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], free: tuple[dict[int, Any] | None, ...]
) -> ExportedProgram:
    """The program of a module in which these sizes are free.

    Raises:
        CaptureError: the module's code fixes one of them, which torch.export takes without a word.
    """
    program = torch.export.export(module, inputs, dynamic_shapes=free, strict=False)
    found = free_sizes(program.graph)[-len(inputs) :]
    if any(not {*(wanted or ())} <= {*dims} for wanted, dims in zip(free, found, strict=True)):
        raise CaptureError("the model's code fixes them")
    return program


def _attempts(others: list[tuple[torch.Tensor, ...]]) -> list[list[tuple[torch.Tensor, ...]]]:
    """The cases that one file is to hold for: all of them; those of one height and width; none but the example."""
    batches = others[: len(BATCHES)]
    return [found for found in ((others, batches) if len(others) > len(batches) else (batches,)) if found]


def _free(
    module: nn.Module, cases: Sequence[tuple[torch.Tensor, ...]], *, batch_alone: bool
) -> tuple[dict[int, Any] | None, ...]:
    """The sizes that are to be free, as torch.export wants them: a batch, where cases differ in it, is one for all."""
    batch, free = Dim("batch"), []
    graph = module.graph if isinstance(module, fx.GraphModule) and not batch_alone else None
    others = [()] * len(cases[0]) if graph is None else free_sizes(graph)
    for first, second, dims in zip(*cases[:2], others, strict=True):
        found = {at: Dim.AUTO for at in dims if at}
        free.append({0: batch, **found} if first.shape != second.shape else found or None)
    return tuple(free)


def _to_onnx(program: ExportedProgram, opset: int) -> torch.onnx.ONNXProgram:
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            optimize=True,
            custom_translation_table=translations(),
        )
    except torch.onnx.OnnxExporterError as error:
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
        what = _without_counterpart(missing[1]) if missing else _at_the_bottom(error)
        raise UnsupportedModelError(f"the model cannot be written as ONNX: {what}") from error
    if exported is None:
        raise UnsupportedModelError("the model cannot be written as ONNX: the exporter returned nothing")
    return exported


def _without_counterpart(operator: str) -> str:
    what = f"operator {operator} has no ONNX counterpart"
    is_torchs = operator.startswith(("aten.", "prims."))
    return what if is_torchs else f"{what}; register_rule(..., to_onnx=...) says how it is written"


def _at_the_bottom(error: BaseException) -> str:
    """What the exporter failed on; above it are a page of advice and the calls that led there."""
    node = ""
    while error.__cause__ is not None:
        error = error.__cause__
        found = re.search(r"translating node %(\w+)", str(error))
        node = f"node {found[1]}: " if found else node
    return f"{node}{one_line(error)}"[:300]


def _tidy(exported: torch.onnx.ONNXProgram, metadata: Mapping[str, str]) -> ir.Model:
    model: ir.Model = exported.model
    for tidy in (
        ir_passes.IdentityEliminationPass(),
        # An output that is an input, or another output, does need an Identity.
        ir_passes.OutputFixPass(),
        # The exporter notes its own graph and the user's source lines, with the paths of this machine.
        ir_passes.ClearMetadataAndDocStringPass(),
        ZeroDenormalsPass(),
        # After the metadata went, because the first of them notes what it did.
        SelectChannelsPass(),
        ShiftPass(),
        GlobalPoolPass(),
        ir_passes.RemoveUnusedNodesPass(),
    ):
        tidy(model)
    _name_inputs_and_outputs(model, exported.exported_program)
    _name_sizes(model)
    model.producer_name, model.producer_version = "graphprune", __version__
    model.metadata_props.update(metadata)
    _report_normalization(model)
    return model


def _report_normalization(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.inputs[0] is None:
            continue
        before = node.inputs[0].producer()
        is_foldable = (
            before is not None
            and "Conv" in before.op_type
            and all(value is None or len(value.uses()) == 1 for value in (node.inputs[0], before.inputs[1]))
        )
        level = logging.WARNING if is_foldable else logging.DEBUG
        logger.log(level, "normalization '%s' was not folded into what is before it", node.name)


def _name_inputs_and_outputs(model: ir.Model, program: ExportedProgram | None) -> None:
    """One input is "input", several keep the names of forward's arguments; outputs are named after their place."""
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    names = {"input": inputs[0]} if len(inputs) == 1 else {}
    names |= dict(zip(_output_names(len(outputs), program), outputs, strict=True))
    for value in _values(model):
        if value.name in names and names[value.name] is not value:
            value.name = f"{value.name}_value"
    for name, value in names.items():
        value.name = name


def _output_names(count: int, program: ExportedProgram | None) -> list[str]:
    spec = program.call_spec.out_spec if program is not None else None
    if spec is not None and spec.num_leaves == count:
        paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(count), spec))
        keys = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths]
    else:
        keys = [str(at) for at in range(count)]
    if count == 1 and not keys[0].isidentifier():
        return ["output"]
    names = [key if key.isidentifier() else f"output_{key}" for key in keys]
    return names if len(set(names)) == count else [f"output_{at}" for at in range(count)]


def _name_sizes(model: ir.Model) -> None:
    """Name the symbols of free sizes: "batch", and of images "height" and "width"; also inside expressions of them."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for position, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value and str(size.value).isidentifier():
                name = "batch" if position == 0 else _name_of_size(position, len(value.shape or ()), str(value.name))
                is_new = name not in names.values()
                names.setdefault(str(size.value), name if is_new else f"{value.name}_{name}")
    if not names:
        return
    symbol = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, names))})(?!\w)")
    for value in _values(model):
        if value.shape is not None:  # may be frozen, or that of several values
            value.shape = ir.Shape(
                symbol.sub(lambda found: names[found[1]], str(dim.value))
                if isinstance(dim, ir.SymbolicDim) and dim.value
                else dim
                for dim in value.shape
            )


def _name_of_size(position: int, rank: int, owner: str) -> str:
    if rank == _IMAGE_RANK and position > 1:
        return ("height", "width")[position - 2]
    return f"{owner}_size_{position}"


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _check(module: nn.Module, path: Path, cases: list[tuple[torch.Tensor, ...]], name: str) -> None:
    """Run the file in onnxruntime on every case and compare with the model."""
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"{name}: the exported file is no valid ONNX: {one_line(error)}") from error
    rounds = rounds_in_between(path)
    with kept_quiet():
        for case in cases:
            labels = ("the torch model", name)
            require_equal(module, path, case, rtol=EXPORT_RTOL, as_written=rounds, labels=labels)


def _reason(error: BaseException) -> str:
    """Return the first line of an error of torch, which go on for a page, and the model's line it came from."""
    text = str(error).strip() or type(error).__name__
    places = [p for p in re.findall(r'File "([^"]+)", line (\d+)', text) if "site-packages" not in p[0]]
    where = f" ({places[-1][0]}:{places[-1][1]})" if places else ""
    return f"{one_line(ValueError(text.splitlines()[0]))[:200]}{where}"
