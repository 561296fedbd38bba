"""The experiments on CIFAR-10: which network, to which budget, with which settings.

Settings are those of `graphprune.CompressConfig`; what is not named is the default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Experiment:
    """One row of the table.

    Attributes:
        model: file in the folder of reference networks, without suffix.
        arch: what builds it, as `--arch` takes it.
        settings: of the run.
        about: what it is to show.
    """

    model: str
    arch: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


_RESNET56 = {"macs": 0.4, "params": 0.4639, "epochs": 20}
_RESNET20 = {"macs": 0.5, "epochs": 10}


def _resnet56(about: str, **settings: Any) -> Experiment:
    return Experiment("resnet56", "graphprune.models:resnet56", {**_RESNET56, **settings}, about)


def _resnet20(about: str, **settings: Any) -> Experiment:
    return Experiment("resnet20", "graphprune.models:resnet20", {**_RESNET20, **settings}, about)


def _vgg16(about: str, **settings: Any) -> Experiment:
    """VGG16-BN with linear layers 512-4096-4096-10; the reference shares are those of Xu, Li, Yuan 2023."""
    return Experiment("vgg16_bn_linear", "graphprune.models:vgg16_bn_linear", {"epochs": 3, **settings}, about)


EXPERIMENTS: dict[str, Experiment] = {
    # targets
    "resnet56": _resnet56("MACs -60 %, parameters -53 % at -0.3 points or better"),
    "vgg-small": Experiment(
        "vgg_small",
        "graphprune.models:vgg_small",
        {"macs": 0.3, "params": 0.07, "epochs": 15},
        "parameters -93 %, MACs -70 % at -0.1 points or better",
    ),
    "mobilenetv2": Experiment(
        "mobilenetv2",
        "graphprune.models:mobilenet_v2",
        {"macs": 0.3333, "epochs": 15},
        "a third of the MACs at -0.5 points or better",
    ),
    "resnet56-speedup2": Experiment(
        "resnet56",
        "graphprune.models:resnet56",
        {"speedup": 2.0, "epochs": 20},
        "twice as fast on this machine at -0.3 points or better",
    ),
    "vgg-small-speedup4": Experiment(
        "vgg_small",
        "graphprune.models:vgg_small",
        {"speedup": 4.0, "epochs": 15},
        "four times as fast on this machine at -0.3 points or better",
    ),
    "mobilenetv2-speedup2": Experiment(
        "mobilenetv2",
        "graphprune.models:mobilenet_v2",
        {"speedup": 2.0, "epochs": 15},
        "twice as fast on this machine at -0.5 points or better",
    ),
    # policies that search, and the 3-sigma pass for linear layers
    # (not for the classifier of ResNet56: 3 sigma leaves it one weight a class)
    "resnet56-search": _resnet56(
        "a searched allocation; parameters -70 % at -1.0 points or better",
        macs=None,
        params=0.3,
        policy="ddpg",
        epochs=10,
    ),
    "vgg16-combined": _vgg16(
        "a searched allocation and 3 sigma; parameters -83.3 % at -1.0 points or better",
        recipe="combined",
        params=0.1667,
    ),
    "vgg16-search": _vgg16(
        "a searched allocation of the convolutions alone; parameters -28.08 %",
        policy="ddpg",
        params=0.7192,
        freeze=("classifier.*",),
    ),
    "vgg16-sigma": _vgg16("3 sigma alone", sigma=3.0),
    # what removal during the training saves: compare `steps.cpu_seconds`
    "resnet56-macs40": _resnet56("steps with removal", params=None, epochs=2),
    "resnet56-macs40-no-shrink": _resnet56("steps without removal", params=None, epochs=2, shrink=False),
    # ablations
    "resnet20": _resnet20("the main setting"),
    "resnet20-no-feature": _resnet20("without the loss on features", lambda_feature=0.0),
    "resnet20-students2": _resnet20("two students of one budget", n_students=2),
    "resnet20-students3": _resnet20("three students of one budget", n_students=3),
    "resnet20-static": _resnet20("a set drawn once", course="static"),
    "resnet20-l1": _resnet20("the set by l1 instead of Taylor", sensitivity="l1"),
    "resnet20-one-shot": _resnet20(
        "one-shot l1, then the same distillation", sensitivity="l1", course="one-shot", warmup=0.0
    ),
    # a family in one run, and its members alone
    "resnet20-family": _resnet20("three budgets in one run", macs=(0.66, 0.5, 0.33), n_students=3),
    "resnet20-family-turns": _resnet20(
        "three budgets in one run, two students a step", macs=(0.66, 0.5, 0.33), n_students=3, students_per_step=2
    ),
    "resnet20-macs66": _resnet20("member of the family alone", macs=0.66),
    "resnet20-macs33": _resnet20("member of the family alone", macs=0.33),
}

#: Reference network -> what builds it.
ARCHITECTURES = {experiment.model: experiment.arch for experiment in EXPERIMENTS.values()}


def find(folder: Path, name: str) -> Path:
    """The file of a reference network, whatever its suffix."""
    for suffix in (".safetensors", ".pt", ".pt2"):
        if (folder / f"{name}{suffix}").exists():
            return folder / f"{name}{suffix}"
    raise SystemExit(f"error: no {name}.safetensors in {folder}; examples/train_reference.py makes one")
