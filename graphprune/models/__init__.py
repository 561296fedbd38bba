"""Reference networks, for `--arch graphprune.models:NAME`: CIFAR ResNets, VGG, MobileNetV2."""

from graphprune.models.mobilenet import MobileNetV2, mobilenet_v2
from graphprune.models.resnet_cifar import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from graphprune.models.vgg import VGG16BN, VGGSmall, vgg16_bn, vgg16_bn_linear, vgg_small

__all__ = [
    "VGG16BN",
    "CifarResNet",
    "MobileNetV2",
    "VGGSmall",
    "mobilenet_v2",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "vgg16_bn",
    "vgg16_bn_linear",
    "vgg_small",
]
