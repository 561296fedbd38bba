"""ONNX files of public architectures, made by both exporters of torch the way their users call them.

Weights are random, scaled so that images reach the outputs (see `weights` of the coverage benchmark). Beside the
files lie the plan that the weights were scaled for and the sizes that the torch path gives for it, so that the ONNX
path can be held against them.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import catalog
import torch
from process import Row, Stages, describe
from weights import calibrate, randomize

import graphprune as gp

NETWORKS = {
    "torchvision": (
        "alexnet vgg11_bn resnet18 resnet50 resnext50_32x4d densenet121 squeezenet1_1 googlenet inception_v3 "
        "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large shufflenet_v2_x1_0 mnasnet1_0 efficientnet_b0 "
        "efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny swin_t vit_b_32 maxvit_t "
        "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large fcn_resnet50"
    ).split(),
    "timm": (
        "repvgg_a0 gernet_s cs3darknet_s convnext_atto dla34 dpn68 edgenext_xx_small efficientformer_l1 "
        "efficientvit_b0 fastvit_t8 ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small lcnet_050 levit_128s "
        "mixer_s32_224 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs nf_regnet_b0 poolformer_s12 pvt_v2_b0 "
        "regnetz_b16 repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d rexnet_100 selecsls42 sequencer2d_s "
        "skresnet18 starnet_s050 swin_tiny_patch4_window7_224 ese_vovnet19b_dw vit_tiny_patch16_224 xception41"
    ).split(),
}
EXPORTERS = ("dynamo", "torchscript")
#: TorchScript's exporter goes to 20; the dynamo exporter writes 18 by itself.
OPSET = {"dynamo": None, "torchscript": 17}


def export(stages: Stages, arguments: argparse.Namespace) -> None:
    """Write the files of one network: FOLDER/EXPORTER/SUITE/NAME.onnx, and NAME.json with plan and slim sizes."""
    row = stages.row
    with stages("build"):
        torch.manual_seed(arguments.seed)
        model, inputs = catalog.build(arguments.suite, arguments.network)
        randomize(model, arguments.seed)
    with stages("trace"):
        graph = gp.trace(model, inputs)
        plan = gp.plan(graph, ratio=0.5, importance="random", seed=arguments.seed)
    with stages("calibrate"):
        calibrate(model, plan, inputs, arguments.seed)
    about = arguments.folder / f"{arguments.suite}-{arguments.network}.json"
    about.parent.mkdir(parents=True, exist_ok=True)
    with stages("slim"):
        slim = gp.slim(model, plan, inputs, graph=graph)
        sizes = {name: list(tensor.shape) for name, tensor in slim.state_dict().items()}
        about.write_text(json.dumps({"plan": plan.to_dict(), "sizes": sizes}))
    row["exports"] = {}
    for exporter in EXPORTERS:
        path = arguments.folder / exporter / arguments.suite / f"{arguments.network}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        with stages(exporter):
            row["exports"][exporter] = attempt(exporter, model, inputs, path)
    row["status"] = "done"


def attempt(exporter: str, model: torch.nn.Module, inputs: tuple[Any, ...], path: Path) -> Row:
    """Export with a free batch, or with a fixed one where that is not possible."""
    problems: list[Row] = []
    for free in (True, False):
        temporary = path.with_suffix(".part")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(exporter, model, inputs, temporary, free)
        except Exception as error:  # exporters raise anything
            problems.append(describe(error))
            temporary.unlink(missing_ok=True)
            continue
        temporary.replace(path)
        why = {} if free else {"why_fixed": problems[0]}
        return {"batch": "free" if free else "fixed", "bytes": path.stat().st_size, **why}
    return {"error": problems[-1], "why_not_free": problems[0]}


def call(exporter: str, model: torch.nn.Module, inputs: tuple[Any, ...], path: Path, free: bool) -> None:
    """One call of the exporter."""
    options: dict[str, Any] = {} if OPSET[exporter] is None else {"opset_version": OPSET[exporter]}
    if exporter == "dynamo":
        inputs = tuple(torch.cat([x, x]) for x in inputs) if free else inputs
        dims = tuple({0: torch.export.Dim("batch")} for _ in inputs) if free else None
        torch.onnx.export(
            model, inputs, path, dynamo=True, dynamic_shapes=dims, external_data=False, verbose=False, **options
        )
        return
    axes = {"input": {0: "batch"}} if free else None
    torch.onnx.export(model, inputs, path, dynamo=False, input_names=["input"], dynamic_axes=axes, **options)
