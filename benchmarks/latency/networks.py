"""The networks of the latency benchmarks, with random weights: a latency does not depend on them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import graphprune.models as cifar

__all__ = ["NETWORKS", "example", "make"]


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return build


#: Name -> how to build it, side of its images.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet56": (cifar.resnet56, 32),
    "vgg_small": (cifar.vgg_small, 32),
    "mobilenet_v2_cifar": (cifar.mobilenet_v2, 32),
    "resnet50": (_torchvision("resnet50"), 224),
    "mobilenet_v2": (_torchvision("mobilenet_v2"), 224),
}


def make(name: str) -> nn.Module:
    """A network with seeded weights, and batch norms that have seen something."""
    torch.manual_seed(0)
    module = NETWORKS[name][0]().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module


def example(name: str) -> tuple[Any, ...]:
    """Inputs of one call."""
    side = NETWORKS[name][1]
    return (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)),)
