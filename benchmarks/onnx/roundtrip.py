"""One ONNX file through `slim`: unchanged, with half of its channels zeroed beforehand, by the torch path's plan."""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from process import Row, Stages

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.cut import mask_groups
from graphprune.passes.onnx.model import free_sizes, load_model
from graphprune.slimming import SlimReport, slim_onnx
from graphprune.verification.verify import compare

#: Largest relative difference of an output that passes.
TOLERANCE = 1e-4


def check(stages: Stages, arguments: argparse.Namespace) -> None:
    """Fill the row with everything that is measured of one file."""
    row, source = stages.row, Path(arguments.network)
    folder = arguments.folder / "slim" / source.parent.parent.name / source.parent.name / source.stem
    folder.mkdir(parents=True, exist_ok=True)
    row["model"] = "/".join(source.parts[-3:])
    row["bytes"] = source.stat().st_size
    given = stored_inputs(source)
    with stages("trace"):
        model = load_model(source)
        sizes = free_sizes(model, given["shapes"])
        graph = trace_onnx(model, sizes=sizes)
    row["opset"] = graph.front_end.model.graph.opset_imports.get("", 0)
    row["nodes"] = sum(1 for _ in graph.front_end.model.graph)
    row["sets"], row["groups"] = len(graph.sets), graph.n_groups
    row["exact"] = int(graph.exact.sum())
    row["unknown"] = dict(graph.unknown)
    row["frozen"] = [[f.reason, f.channels] for f in sorted(graph.frozen, key=lambda f: -f.channels)[:3]]
    with stages("unchanged"):
        row["unchanged"] = brief(slim_onnx(source, folder / "unchanged.onnx", force=True, **given))
    removed = half(graph, arguments.seed)
    row["planned"] = int(removed.sum())
    if removed.any():
        plan = graph.plan(removed)
        dead(stages, source, folder, plan, given)
    known = arguments.folder / f"{source.parent.name}-{source.stem}.json"
    if known.exists():
        against_torch(stages, source, folder, json.loads(known.read_text()))
    row["status"] = row.get("status", "exact").replace("running", "exact")
    shutil.rmtree(folder)  # hundreds of megabytes each


def half(graph: ChannelGraph, seed: int) -> Mask:
    """Half of the exact groups of each set, drawn at random; of a set of one group none."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(graph.n_groups, dtype=np.bool_)
    for group_set in graph.sets:
        exact = group_set.groups[graph.exact[group_set.groups]]
        removed[rng.permutation(exact)[: len(group_set.groups) // 2]] = True
    return removed


def stored_inputs(source: Path) -> dict[str, Any]:
    """Inputs that lie beside a file, and their sizes, as `slim_onnx` takes them; None where there are none."""
    path = source.with_suffix(".npz")
    if not path.exists():
        return {"inputs": None, "shapes": None}
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return {"inputs": arrays, "shapes": {name: array.shape for name, array in arrays.items()}}


def dead(stages: Stages, source: Path, folder: Path, plan: PruningPlan, given: Mapping[str, Any]) -> None:
    """Zero the planned channels, find them again without the plan, and compare with what the plan gives."""
    row = stages.row
    zeroed = folder / "zeroed.onnx"
    with stages("zero"):
        model = load_model(source)
        graph = trace_onnx(model, sizes=free_sizes(model, given["shapes"]))
        mask_groups(graph, graph.removed_by(plan))
        ir.save(graph.front_end.model, zeroed)
    with stages("dead"):
        row["dead"] = brief(slim_onnx(zeroed, folder / "dead.onnx", force=True, **given))
    with stages("planned"):
        planned = slim_onnx(source, folder / "planned.onnx", plan, force=True, **given)
    # More may go than was planned: channels that came dead.
    row["missed"] = max(0, row["planned"] - row["dead"]["removed_groups"])
    row["found"] = not row["missed"] and row["dead"]["params_after"] <= planned.params_after
    with stages("compare"):
        arrays = given["inputs"]
        feeds = inputs(zeroed) if arrays is None else tuple(arrays[name] for name in input_names(zeroed))
        for level, unoptimized in (("all", False), ("disabled", True)):
            found = compare(zeroed, folder / "dead.onnx", feeds, unoptimized=unoptimized)
            row["dead"][f"error_{level}"] = found.worst.error
            if not found.equal:
                row["status"] = "different"


def against_torch(stages: Stages, source: Path, folder: Path, known: Row) -> None:
    """The plan that the torch path made: do both paths cut the same sizes?"""
    plan = PruningPlan.from_dict(known["plan"])
    with stages("torch plan"):
        try:
            report = slim_onnx(source, folder / "torch.onnx", plan, force=True)
        except PlanError as error:
            stages.row["torch"] = {"error": str(error)[:300]}
            return
    model = load_model(folder / "torch.onnx")
    same, other = 0, []
    for value in model.graph.initializers.values():
        if value.name in known["sizes"] and value.const_value is not None:
            shape = list(value.const_value.shape.numpy())
            if shape == known["sizes"][value.name]:
                same += 1
            else:
                other.append([value.name, shape, known["sizes"][value.name]])
    ours = Counter(tuple(w) for w in convolutions(model))
    stages.row["torch"] = {
        "same": same,
        "different": other[:3],
        "named": same + len(other),
        "of": len(known["sizes"]),
        "lost": report.missing_tensors,
        "convolutions": bool(ours <= Counter(tuple(s) for s in known["sizes"].values() if len(s) > 2)),
    }


def convolutions(model: ir.Model) -> list[list[int]]:
    """Sizes of the weights of all convolutions."""
    kernels = {node.inputs[1] for node in model.graph if node.op_type in ("Conv", "ConvTranspose")}
    return [list(v.const_value.shape.numpy()) for v in kernels if v is not None and v.const_value is not None]


def inputs(path: Path) -> tuple[np.ndarray, ...]:
    """Random inputs, a batch of two where it is free."""
    from graphprune.runtime.onnx_inputs import input_shapes, input_specs, random_inputs
    from graphprune.runtime.onnx_session import open_session

    specs = input_specs(open_session(path), path.name)
    return tuple(random_inputs(specs, input_shapes(specs, batch=2, name=path.name), seed=5).values())


def input_names(path: Path) -> list[str]:
    """Names of the inputs in the order of the file."""
    return [value.name for value in load_model(path).graph.inputs if value.name and not value.is_initializer()]


def brief(report: SlimReport) -> dict[str, Any]:
    """What of a report goes into the row."""
    data = report.to_dict()
    keys = ("removed_groups", "removed_channels", "macs_before", "macs_after", "params_before", "params_after")
    return {**{key: data[key] for key in keys}, "max_error": data["max_error"]}
