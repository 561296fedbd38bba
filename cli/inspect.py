"""`graphprune inspect MODEL`: what can be removed, what cannot and why."""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphprune.cli.options import ImageSize, arch_options, force_option, json_option, shape_option, together
from graphprune.cli.output import print_json, print_text
from graphprune.passes.errors import UsageError

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["command"]

SCHEMA = 1
_CHANNELS = 3


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--image-size", type=ImageSize(), help="Side, or height x width, of the images that the model takes.")
@shape_option
@together(*arch_options)
@click.option("--svg", type=click.Path(path_type=Path), help="Also draw the coupled channels into this file.")
@force_option
@json_option
def command(
    model: Path,
    image_size: int | tuple[int, int] | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    svg: Path | None,
    force: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Show the sets of channels that can only be removed together, and what each of them costs.

    MODEL is a .pt2 archive, an .onnx file, or a state dict or checkpoint (.safetensors, .pt, .ckpt) with --arch, which
    needs the size of its input besides: --image-size 32 or --shape 1x3x32x32.
    """
    from graphprune.formats.files import atomic_write_text, refuse_overwrite
    from graphprune.report.drawing import draw_svg
    from graphprune.report.inspection import describe_graph

    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    trace = _trace_onnx if model.suffix.lower() == ".onnx" else _trace_torch
    if svg is not None:
        refuse_overwrite(svg, force)
    graph, more = trace(model, size, shapes or {}, loading)
    if svg is not None:
        atomic_write_text(svg, draw_svg(graph, f"Coupled channels of {model.name}"))
    found = {**describe_graph(graph, more.pop("counted", None)), **more}
    if as_json:
        print_json({"schema": SCHEMA, "model": str(model), **found})
    else:
        print_text(_render, found)


def _trace_torch(
    model: Path, size: tuple[int, int] | None, shapes: Mapping[str, tuple[int, ...]], loading: Mapping[str, Any]
) -> "tuple[ChannelGraph, dict[str, Any]]":
    import torch

    from graphprune.formats.loading import load_model
    from graphprune.inputs import expected_images, require_batch
    from graphprune.passes.fx.analyze import trace

    loaded = load_model(model, **loading)
    if isinstance(loaded, torch.export.ExportedProgram) and loaded.example_inputs is not None:
        return trace(loaded, _examples(model, loaded, size, _in_order(loaded, shapes)) if size or shapes else None), {}
    if shapes:
        inputs = _in_order(loaded, shapes)
        require_batch(loaded, inputs)
        return trace(loaded, tuple(torch.randn(shape[0] or 2, *shape[1:]) for shape in inputs)), {}
    channels, own_size = expected_images(loaded)
    size = size or own_size
    if size is None:
        raise UsageError(
            f"{model} does not say what size of images it takes: give --image-size 224 or --shape 1x3x224x224"
        )
    return trace(loaded, (torch.randn(2, channels or _CHANNELS, *size),)), {}


def _in_order(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
    """The shapes in the order in which the model takes its inputs; a single one may go without a name."""
    if "" in shapes or not shapes:
        return [*shapes.values()]
    from graphprune.verification.model_runner import describe_inputs

    specs = describe_inputs(model)
    names = [*signature(model.forward).parameters] if specs is None else [spec.name for spec in specs]
    for name in shapes:
        if name not in names:
            raise UsageError(f"no input is called {name!r}: the model takes {', '.join(names)}")
    return [shapes[name] for name in sorted(shapes, key=names.index)]


def _examples(
    model: Path, program: Any, size: tuple[int, int] | None, shapes: Sequence[tuple[int, ...]]
) -> tuple[Any, ...]:
    """Inputs of these sizes, which an archive was exported for or leaves free.

    Raises:
        UsageError: it was exported for others.
    """
    import torch

    from graphprune.passes.fx.arguments import arguments_of
    from graphprune.passes.fx.capture import module_of
    from graphprune.passes.fx.sizes import fixed_sizes

    own = arguments_of(program).inputs(*program.example_inputs)
    asked = [*shapes] or [(0, 0, *(size or ())) for _ in own]
    found = []
    for example, shape in zip(own, asked, strict=False):
        if len(shape) == example.ndim:
            for at, wanted in enumerate(shape):
                if wanted:
                    example = example.index_select(at, torch.arange(wanted) % example.shape[at])
        else:
            example = torch.zeros([n or 1 for n in shape])
        found.append(example)
    if problem := fixed_sizes(module_of(program).graph, found):
        hint = f"; the batch comes first, as in 1x{_text(asked[0])}" if len(asked[0]) == own[0].ndim - 1 else ""
        raise UsageError(f"{model} was exported for other inputs: {problem}{hint}")
    return tuple(found)


def _text(shape: Sequence[int]) -> str:
    return "x".join(str(size or "?") for size in shape)


def _trace_onnx(
    model: Path, size: tuple[int, int] | None, shapes: Mapping[str, tuple[int, ...]], loading: Mapping[str, Any]
) -> "tuple[ChannelGraph, dict[str, Any]]":
    """The channels of a file, its cost, and the sizes at which that was counted; nothing need be able to run it."""
    from graphprune.formats.onnx_cost import onnx_cost
    from graphprune.passes.onnx.analyze import trace_onnx
    from graphprune.passes.onnx.model import free_sizes, load_model
    from graphprune.runtime.onnx_inputs import refuse_other_shapes, specs_of

    if given := next((name for name in ("arch", "entry") if loading[name] is not None), None):
        raise UsageError(f"{model} holds a whole model, not only its weights: leave --{given} out")
    loaded = load_model(model)
    specs = specs_of(loaded)
    asked: dict[str, tuple[Any, ...]] = {}
    if size is not None:
        asked = {spec.name: (0, spec.dims[1], *size) for spec in specs if len(spec.dims) == 4}
    only = specs[0].name if len(specs) == 1 else ""
    asked |= {name or only: shape for name, shape in shapes.items()}
    refuse_other_shapes(specs, asked, str(model))
    stated = {name: [n if isinstance(n, int) else 0 for n in shape] for name, shape in asked.items()}
    graph = trace_onnx(loaded, sizes=free_sizes(loaded, stated))
    sizes = {entry["name"]: entry["shape"][1:] for entry in graph.inputs if entry["shape"]}
    counted = onnx_cost(model, shapes={name: (0, *rest) for name, rest in sizes.items()})
    is_open = (spec.name for spec in specs if not all(isinstance(dim, int) for dim in spec.dims[1:]))
    return graph, {
        "counted": counted,
        "inputs": {name: [1, *rest] for name, rest in sizes.items()},
        "sizes_guessed_of": [name for name in is_open if name not in stated],
    }


def _render(found: Mapping[str, Any], console: Any = None) -> str:
    from graphprune.report.inspection import summarize
    from graphprune.report.summary import count, some_of
    from graphprune.report.tables import new_table, rendered

    sets = new_table(("coupled channels", "number", "MACs", "parameters", "removable", "outputs of"), left=(0, 4, 5))
    for s in found["sets"]:
        sets.add_row(
            s["name"],
            f"{s['channels']}" + (f" x {s['indices_per_channel']}" if s["indices_per_channel"] > 1 else ""),
            f"{100 * s['macs_share']:.1f} %",
            f"{100 * s['params_share']:.1f} %",
            _removable(s),
            summarize(s["layers"]),
        )
    frozen = new_table(("not removable", "channels", "of"), left=(0, 2))
    for f in found["frozen"]:
        frozen.add_row(f["reason"], str(f["channels"]), summarize(f["parameters"], "in all"))
    notes = [
        f"{count(found['macs'])} MACs, {count(found['params'])} parameters; {found['groups']} groups of coupled "
        f"channels in {len(found['sets'])} sets.",
        "MACs and parameters of a set: what would go with all of it; sets share layers, so the sum is above 100 %.",
        f"With everything removed that may go, {100 * found['least_macs_share']:.3g} % of the MACs and "
        f"{100 * found['least_params_share']:.3g} % of the parameters remain.",
        *(
            f"Operator without a rule (used {times} times), nothing that it touches is removed: {name}"
            for name, times in found["unknown_operators"].items()
        ),
    ]
    if found["uncounted"]:
        notes.append(f"not in the MACs: {some_of(found['uncounted'])}")
    if guessed := found.get("sizes_guessed_of"):
        sizes = ", ".join(f"{name}:{_text(found['inputs'][name])}" for name in guessed)
        notes.append(f"The file leaves sizes of its inputs open, and this is for {sizes}; --shape gives others")
    if not found["sets"]:
        notes.insert(0, "nothing can be removed")
    tables = [table for table in (sets, frozen) if table.row_count] or [sets]
    parts = [rendered(table, notes if table is tables[-1] else [], console) for table in tables]
    return "\n".join(parts)


def _removable(group_set: Mapping[str, Any]) -> str:
    if not group_set["exact"]:
        return f"not exactly: {group_set['why_inexact']}"
    return "yes, all" if group_set["bypassed"] else "yes"
