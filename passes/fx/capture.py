"""Capture a model as a graph of ATen operators that can be analyzed, cut and trained."""

import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from graphprune.passes.errors import CaptureError, UnsupportedModelError
from graphprune.passes.fx.arguments import Arguments, arguments_of, without_constants
from graphprune.passes.fx.captured import CapturedModule, set_training
from graphprune.passes.fx.decompose import decompose
from graphprune.passes.fx.device import CPU, device_of, inputs_on, to_device
from graphprune.passes.fx.fake_quantize import stop_observers
from graphprune.passes.fx.operators import find_rule
from graphprune.passes.fx.outputs import is_single, joined, layouts, repeats, turned
from graphprune.passes.fx.plain import is_plain, plain_copy
from graphprune.passes.fx.program import export
from graphprune.passes.fx.quiet import kept_quiet
from graphprune.passes.fx.sizes import fixed_sizes, free_sizes, has_sizes_of

logger = logging.getLogger("graphprune")

aten = torch.ops.aten


_MOMENTUM = 0.1  # of running statistics; torch's default
_SPLITS = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unsafe_chunk.default,
    aten.unsafe_split.Tensor,
)
_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size")


def module_of(program: ExportedProgram, *, own: bool = False) -> fx.GraphModule:
    """The program as a module in inference mode, whatever mode it was exported in; it shares the program's weights.

    Arguments that are no tensors are none any more (see `arguments`), and nothing is observed (see `fake_quantize`).

    Args:
        program: what torch.export made of a model.
        own: it was made here, of a model in inference mode.
    """
    with kept_quiet():
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    without_constants(program, module)
    stop_observers(module)
    if set_training(module, False):
        whose = "the model's code has operators of training in inference mode, too" if own else ""
        logger.info("%s; it is used in inference mode", whose or "the program was exported in training mode")
    return module


def capture(
    model: nn.Module | ExportedProgram | CapturedModule,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    share: bool = False,
) -> CapturedModule:
    """Capture `model` as a graph; the model itself is not touched.

    Args:
        model: a module, an exported program, or something captured already (returned as it is).
        example_inputs: a tuple of positional inputs; may be left out for an exported program that carries its own.
            Flags and other arguments that are no tensors become part of the graph, with the values they have here.
        share: keep the model's own parameters instead of copies, for a graph that is looked at and not trained. Those
            of a model that is not on the CPU are copied in any case.

    Returns:
        The graph on the CPU, wherever the model is, in inference mode, with a batch dimension that varies unless the
        model forbids it.

    Raises:
        CaptureError: torch.export cannot capture the model; the message names the source line.
    """
    if isinstance(model, CapturedModule):
        return model
    if isinstance(model, ExportedProgram):
        return _of_program(model, example_inputs, share)
    if example_inputs is None:
        raise CaptureError("example_inputs are needed to capture a module: pass a tuple of inputs")
    if not isinstance(example_inputs, tuple):
        raise CaptureError(f"example_inputs must be a tuple of inputs, got {type(example_inputs).__name__}")
    return _captured(model, inputs_on(device_of(model), example_inputs), share)


def at_sizes(module: CapturedModule, inputs: tuple[Any, ...]) -> CapturedModule:
    """A captured module as it would have been captured on inputs of these sizes, which it leaves free.

    What a graph knows of its sizes, and so the cost of its layers, is that of the inputs that it was traced on. The
    module itself is returned where it was traced on such ones.

    Raises:
        CaptureError: it does not take such inputs.
    """
    if problem := fixed_sizes(module.graph, inputs):
        raise CaptureError(f"the captured graph does not take these inputs: {problem}")
    if has_sizes_of(module.graph, inputs):
        return module
    still = {
        str(node.args[3].target)
        for node in module.graph.nodes
        if node.target is aten.batch_norm.default and node.args[6] == 0 and isinstance(node.args[3], fx.Node)
    }
    traced, problem = export(module, inputs_on(device_of(module), inputs))
    found = _graph_of(traced, inputs, True, module.meta.get("arguments", arguments_of(traced)), still)
    if free_sizes(found.graph) != free_sizes(module.graph):
        logger.warning("sizes that were free are fixed for these inputs: %s", problem or "the model's code fixes them")
    return found


def _of_program(program: ExportedProgram, example_inputs: tuple[Any, ...] | None, share: bool) -> CapturedModule:
    """The graph of a program, at the sizes of the inputs given where it leaves them free."""
    arguments, carried = arguments_of(program), program.example_inputs
    if example_inputs is None and carried is None:
        raise CaptureError("the exported program carries no example inputs: pass example_inputs")
    inputs = arguments.inputs(*carried) if example_inputs is None else arguments.inputs(example_inputs)
    captured = _graph_of(program, inputs, share, arguments)
    return captured if example_inputs is None else at_sizes(captured, inputs_on(CPU, inputs))


def _captured(model: nn.Module, example_inputs: tuple[Any, ...], share: bool) -> CapturedModule:
    """The graph of a module, for any batch size if that can be."""
    plain, problem, captured = model if is_plain(model) else plain_copy(model), "", None
    still = _still_statistics(model)
    if is_single(example_inputs):
        both = joined([example_inputs, turned(example_inputs)])  # in a graph, a batch of 1 would be a constant
        try:
            program = export(plain, both)[0]
            arguments = arguments_of(program)
            captured = _graph_of(program, arguments.inputs(both), share, arguments, still)
            _require_samples_apart(captured, arguments.inputs(example_inputs))
        except CaptureError as error:
            captured, problem = None, str(error)
    if captured is None:
        program, reason = export(plain, example_inputs)
        arguments, problem = arguments_of(program), problem or reason
        captured = _graph_of(program, arguments.inputs(example_inputs), share, arguments, still)
    batch = next((x.shape[0] for x in example_inputs if isinstance(x, torch.Tensor) and x.dim() > 1), None)
    if batch is not None and not any(free_sizes(captured.graph)):
        logger.warning("the batch size of the model is fixed at %s%s", batch, f": {problem}" if problem else "")
    return captured


def _require_samples_apart(captured: CapturedModule, sample: tuple[Any, ...]) -> None:
    """Refuse a graph for two samples that does not compute for each what it does for it alone.

    Code that has a batch of 1 written into it, as in `x.reshape(1, -1)`, mixes them.
    """
    try:
        found = layouts(captured, [sample, turned(sample)])
        if any(layout.dims is None for layout in found) and repeats(captured, sample):
            raise CaptureError("two samples in a batch give something else than each by itself")
    except (RuntimeError, ValueError, IndexError) as error:  # the model's own code
        raise CaptureError(f"it does not run on another one ({next(iter(str(error).splitlines()), '')})") from error


def _graph_of(
    program: ExportedProgram,
    inputs: tuple[Any, ...],
    share: bool,
    arguments: Arguments,
    still: Collection[str] | None = None,
) -> CapturedModule:
    """The graph of a program, which is a user's own, or was made of a module with these statistics that stay still."""
    unlifted = module_of(program, own=still is not None)
    captured = CapturedModule(unlifted, unlifted.graph)
    is_here = device_of(captured) == CPU
    if not share or not is_here:  # moving a module moves its parameters in place
        _own_parameters(captured)
    if not is_here:
        to_device(captured, CPU)
    captured.meta["example_inputs"] = inputs_on(CPU, inputs)
    captured.meta["arguments"] = arguments
    captured.meta["literals"] = frozenset(program.graph_signature.lifted_tensor_constants)
    _clean(captured)
    _keep_statistics_alive(captured, still or ())
    return captured.eval()


def _own_parameters(module: fx.GraphModule) -> None:
    """Replace every parameter and buffer by a copy; tied ones stay tied."""
    copies: dict[int, Any] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in copies:
                    fresh = tensor.detach().clone()
                    trainable = tensor.is_floating_point() or tensor.is_complex()
                    copies[id(tensor)] = nn.Parameter(fresh, trainable) if table is owner._parameters else fresh
                table[name] = copies[id(tensor)]


def _clean(module: CapturedModule) -> None:
    """Drop assertions and slices of everything; give tied tensors one name and every split its sizes.

    What has no rule is taken apart where that helps.
    """
    decompose(module, lambda target: find_rule(target) is not None or target in _SPLITS)
    graph = module.graph
    names = _first_names(module)
    for node in list(graph.nodes):
        if _only_checks(node):
            graph.erase_node(node)
        elif node.target is aten.slice.Tensor and _is_whole(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "get_attr":
            node.target = names.get(node.target, node.target)
        elif node.target in _SPLITS:
            _give_sizes(node)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unused(module)
    module.recompile()
    for node in graph.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            raise UnsupportedModelError(f"the captured graph has a node of kind {node.op} ({node.name})")


def _drop_unused(module: CapturedModule) -> None:
    """Parameters and buffers that nothing reads are no part of what is compressed, nor of its cost."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path, owner in list(module.named_modules()):
        for table in (owner._parameters, owner._buffers):
            for name in [name for name in table if f"{path}.{name}".lstrip(".") not in read]:
                delattr(owner, name)


def _still_statistics(model: nn.Module) -> set[str]:
    """Names of the running means that a momentum of 0 keeps as they are."""
    modules = model.named_modules(remove_duplicate=False)
    return {f"{name}.running_mean".lstrip(".") for name, module in modules if getattr(module, "momentum", None) == 0}


def _keep_statistics_alive(module: CapturedModule, still: Collection[str]) -> None:
    """Give batch norms a momentum that were exported without one.

    `momentum=None` is a mean over all batches, and in inference torch exports it as 0: statistics would never follow
    the weights. An archive does not tell it from a momentum of 0.
    """
    for node in module.graph.nodes:
        if (
            node.target is aten.batch_norm.default
            and node.args[6] == 0
            and getattr(node.args[3], "target", None) not in still
        ):
            node.update_arg(6, _MOMENTUM)
    module.recompile()


def _only_checks(node: fx.Node) -> bool:
    target = str(node.target)
    if node.op == "call_module":
        return "guard" in target
    return node.op == "call_function" and any(name in target for name in _ASSERTIONS)


def _first_names(module: nn.Module) -> dict[str, str]:
    """Name of every parameter and buffer -> the first name of the same tensor."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _is_whole(node: fx.Node) -> bool:
    bounds: list[Any] = [*node.args[2:], None, None, None]
    start, end, step = bounds[:3]
    return start in (None, 0) and step in (None, 1) and (end is None or (isinstance(end, int) and end >= 2**62))


def _give_sizes(node: fx.Node) -> None:
    """Rewrite chunk, even split and the like as a split with sizes, which may differ after a cut."""
    parts = node.meta.get("val")
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if not parts:
        return
    sizes = [part.shape[dim] for part in parts]
    if all(isinstance(size, int) for size in sizes):
        unsafe = "unsafe" in str(node.target)  # its parts are no views, and may be written to
        node.target = (aten.unsafe_split_with_sizes if unsafe else aten.split_with_sizes).default
        node.args = (node.args[0], sizes, dim)
        node.kwargs = {}
