"""What each choice of the exporter brings in onnxruntime: the optimized graph, and the latency without it.

    python benchmarks/latency/export.py make --folder WORK        # networks and variants; minutes
    python benchmarks/latency/export.py measure --folder WORK     # results/export.json, EXPORT.md; on an idle machine

Networks: ResNet56, VGG-Small and MobileNetV2 for CIFAR, with random weights (a latency does not depend on them), dense
and with half of the multiply-accumulates at widths of whole blocks. Every variant lacks one thing that `export_onnx`
does, and computes the same.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from graphprune.formats.files import atomic_write_text  # noqa: E402
from graphprune.passes.onnx.clean import EliminateDeadCodePass  # noqa: E402
from graphprune.passes.onnx.layout import GlobalPoolPass, SelectChannelsPass  # noqa: E402
from graphprune.passes.onnx.model import load_model  # noqa: E402
from graphprune.runtime.benchmark import benchmark  # noqa: E402
from graphprune.runtime.machine import machine_facts  # noqa: E402
from graphprune.runtime.optimized import optimized_graph  # noqa: E402

FULL = "export_onnx"
PASSES = ("SelectChannelsPass", "GlobalPoolPass")
NETWORKS = ("resnet56", "vgg_small", "mobilenet_v2")
BATCHES = (1, 16)
VARIANTS = {
    FULL: "the file as it is written",
    "slice-and-pad": "padded shortcuts are left as Slice and Pad (`SelectChannelsPass`)",
    "reduce-mean": "the mean over space is left as ReduceMean (`GlobalPoolPass`)",
    "weights-as-inputs": "weights are listed as inputs, so that a caller may override them",
    "unnamed-batch": "the free batch has no name, so that sizes are not known to be equal",
    "exporter-alone": "torch's exporter without its optimization and without ours",
    "denormals": "one weight in 100 is 1e-39 instead of 0",
}
OPERATORS = ("Conv+Add+Relu", "Add", "Relu", "Clip", "BatchNormalization", "ReorderInput", "ReorderOutput")


def make(folder: Path) -> None:
    """Write every network in every variant."""
    import torch

    import graphprune as gp
    from graphprune import models
    from graphprune.formats import export

    folder.mkdir(parents=True, exist_ok=True)
    example = (torch.randn(4, 3, 32, 32),)
    for network in NETWORKS:
        for kind in ("dense", "slim"):
            stem = folder / f"{network}.{kind}"
            if variant(stem, FULL).exists():
                continue  # of a run that was stopped
            torch.manual_seed(0)
            model = getattr(models, network)().eval()
            if kind == "slim":
                graph = gp.trace(model, example)
                plan = gp.plan(graph, macs=0.5, align=machine_facts().conv_block)
                model = gp.slim(model, plan, example, graph=graph)
            with without(export, *PASSES):
                gp.export_onnx(model, example, variant(stem, "plain"), force=True)
            dims = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(model, example, dynamic_shapes=dims, strict=False)
            alone = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
            alone.save(variant(stem, "exporter-alone"))
            vary(stem)
            print(network, kind, flush=True)


def vary(stem: Path) -> None:
    """Write the variants that follow from the export without passes for the layout."""
    passed = {
        "slice-and-pad": (GlobalPoolPass,),
        "reduce-mean": (SelectChannelsPass,),
        **dict.fromkeys((*CHANGES, FULL), (SelectChannelsPass, GlobalPoolPass)),
    }
    for name, passes in passed.items():
        model = load_model(variant(stem, "plain"))
        for apply in (*passes, EliminateDeadCodePass):
            apply()(model)
        proto = ir.to_proto(ir.external_data.load_to_model(model))
        if name in CHANGES:
            CHANGES[name](proto)
        onnx.save(proto, variant(stem, name))


def variant(stem: Path, name: str) -> Path:
    """The file of a variant."""
    return stem.with_name(f"{stem.name}.{name}.onnx")


@contextmanager
def without(module: Any, *names: str) -> Iterator[None]:
    """Replace passes of the exporter by one that does nothing."""
    kept = {name: getattr(module, name) for name in names}
    try:
        for name in names:
            setattr(module, name, lambda: lambda model: None)
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def list_weights(model: onnx.ModelProto) -> None:
    """Weights as inputs with a default."""
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def forget_batch(model: onnx.ModelProto) -> None:
    """No name for the batch, nor for what is derived from it."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")


def add_denormals(model: onnx.ModelProto) -> None:
    """Some weights of every kernel become 1e-39."""
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            array = numpy_helper.to_array(tensor).copy()
            array[rng.random(array.shape) < 0.01] = 1e-39
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


CHANGES = {"weights-as-inputs": list_weights, "unnamed-batch": forget_batch, "denormals": add_denormals}


def measure(folder: Path, seconds: float) -> None:
    """Look at every optimized graph, and time all variants of a network against each other."""
    rows = []
    for network in NETWORKS:
        for kind in ("dense", "slim"):
            files = {name: variant(folder / f"{network}.{kind}", name) for name in VARIANTS}
            row: dict[str, Any] = {"network": network, "kind": kind, "graphs": {}, "latency": {}}
            for name, file in files.items():
                graph = optimized_graph(file)
                ops = [node.op_type for node in graph.nodes]
                counts = {op: ops.count(op) for op in OPERATORS}
                row["graphs"][name] = {**counts, "nodes": len(ops), "findings": len(graph.findings)}
            for batch in BATCHES:
                report = benchmark(files, batch=batch, min_seconds=seconds)
                row["latency"][str(batch)] = report.to_dict()
            rows.append(row)
            print(network, kind, flush=True)
    command = "python benchmarks/latency/export.py measure"
    result = {"command": command, "machine": machine_facts().to_dict(), "rows": rows}
    atomic_write_text(HERE / "results" / "export.json", json.dumps(result, indent=1) + "\n")
    atomic_write_text(HERE / "EXPORT.md", page(result))


def page(result: dict[str, Any]) -> str:
    """The result as a page."""
    machine = result["machine"]
    lines = [
        "# What each choice of the exporter brings",
        "",
        f"`{result['command']}`, one thread, {machine['cpu']} ({machine['instruction_set']}), onnxruntime "
        f"{machine['onnxruntime']};",
        "made from [results/export.json](results/export.json). A ratio is the latency of the file without that choice",
        "over that of the file as it is written, with its 95 % interval; above 1 the choice pays. Bold: the interval",
        "does not hold 1.",
        "",
        *(f"- *{name}*: {text}" for name, text in VARIANTS.items() if name != FULL),
        "",
    ]
    names = [name for name in VARIANTS if name != FULL]
    for batch in BATCHES:
        lines += [
            f"## Batch {batch}",
            "",
            f"| network | as written | {' | '.join(names)} |",
            "|---" * (len(names) + 2) + "|",
        ]
        for row in result["rows"]:
            timings = {model["name"]: model for model in row["latency"][str(batch)]["models"]}
            cells = [ratio(timings[name]) for name in names]
            lines.append(
                f"| {row['network']} {row['kind']} | {timings[FULL]['median_ms']:.2f} ms | {' | '.join(cells)} |"
            )
        lines.append("")
    lines += [
        "## The optimized graph",
        "",
        "Nodes outside the blocked layout that need not be (`findings` of",
        "`graphprune benchmark --profile`), and reorderings in all.",
        "",
    ]
    lines += [f"| network | {' | '.join(VARIANTS)} |", "|---" * (len(VARIANTS) + 1) + "|"]
    for row in result["rows"]:
        cells = [
            f"{graph['findings']}, {graph['ReorderInput'] + graph['ReorderOutput']}" for graph in row["graphs"].values()
        ]
        lines.append(f"| {row['network']} {row['kind']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ratio(timing: dict[str, Any]) -> str:
    """How many times the latency of the full file, with its interval."""
    low, high = sorted(1 / bound for bound in timing["speedup_interval"])
    text = f"{1 / timing['speedup']:.2f}"
    return f"{f'**{text}**' if low > 1 or high < 1 else text} ({low:.2f} - {high:.2f})"


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "measure"))
    parser.add_argument("--folder", type=Path, required=True, help="where the variants are kept")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds for each file")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.folder)
    else:
        measure(arguments.folder, arguments.seconds)


if __name__ == "__main__":
    main()
