"""Networks of torchvision and timm as ONNX files, for `import_files.py` to read: random weights, as users export them.

    python benchmarks/onnx_in/export_networks.py --folder WORK      # needs torchvision and timm, and nothing of ours

By torch's own exporter with a free batch, and some by TorchScript's too. Networks that are there are not made again.
"""

import argparse
import time
import warnings
from pathlib import Path

import timm
import torch
import torchvision

#: Side of the images: the smallest that a network takes, or else 64.
_SIDE = 64
_SIDES = {"inception_v3": 96, "alexnet": 96, "fastvit_t8": 128, "edgenext_xx_small": 96}
TORCHVISION = (
    "alexnet densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v2 mobilenet_v3_small "
    "regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 vgg11_bn convnext_tiny"
).split()
TIMM = (
    "convnext_atto cs3darknet_s dla34 dpn68 edgenext_xx_small ese_vovnet19b_dw fastvit_t8 fbnetc_100 ghostnet_050 "
    "hardcorenas_a hrnet_w18_small lcnet_050 mobilenetv4_conv_small mobileone_s0 nf_regnet_b0 repvgg_a0 repvit_m0_9 "
    "res2net50_14w_8s rexnet_100 selecsls42 tf_efficientnet_lite0 tinynet_e dm_nfnet_f0 resnest14d"
).split()
#: Those that are also written by TorchScript's exporter.
BOTH = {"resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "hardcorenas_a", "tf_efficientnet_lite0", "dla34"}


def main() -> None:
    """Write WORK/files/EXPORTER/NAME.onnx for every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are kept")
    folder = parser.parse_args().folder
    warnings.simplefilter("ignore")
    for suite, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name in names:
            for exporter in ("dynamo", "torchscript") if name in BOTH else ("dynamo",):
                path = folder / "files" / f"{suite}-{exporter}" / f"{name}.onnx"
                if not path.exists():
                    start = time.process_time()
                    write(exporter, network(suite, name), path, _SIDES.get(name, _SIDE))
                    print(path.stem, exporter, f"{time.process_time() - start:.0f} s", flush=True)


def network(suite: str, name: str) -> torch.nn.Module:
    """A network with random weights, and statistics of normalization that are not those of an untouched one."""
    torch.manual_seed(0)
    if suite == "timm":
        model = timm.create_model(name)
    else:
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.7, 1.3)
    return model.eval()


def write(exporter: str, model: torch.nn.Module, path: Path, side: int) -> None:
    """One file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, part = torch.randn(2, 3, side, side), path.with_suffix(".part")
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            model, (images,), part, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
        )
    else:
        axes = {"input": {0: "batch"}}
        torch.onnx.export(
            model, (images,), part, dynamo=False, opset_version=17, input_names=["input"], dynamic_axes=axes
        )
    part.replace(path)


if __name__ == "__main__":
    main()
