import pytest
import torch
from torch import nn

from graphprune.models import mobilenet_v2


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("width", "parameters"), [(1.0, 3_504_872), (0.5, 1_968_680), (1.4, 6_108_776)])
def test_imagenet_parameters_are_those_published(width, parameters):
    with torch.device("meta"):
        assert count(mobilenet_v2(1000, width=width, strides="imagenet")) == parameters


@pytest.mark.parametrize(("strides", "size", "last"), [("cifar", 32, 4), ("imagenet", 224, 7)])
def test_strides_set_the_last_resolution(strides, size, last):
    model = mobilenet_v2(width=0.25, strides=strides).eval()
    assert model.features(torch.zeros(1, 3, size, size)).shape[2:] == (last, last)


def test_names_and_depthwise_groups_are_torchvisions():
    model = mobilenet_v2()
    names = set(model.state_dict())
    assert {"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight"} <= names
    assert {"features.2.conv.2.weight", "features.18.0.weight", "classifier.1.weight"} <= names
    depthwise = model.features[2].conv[1][0]
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == 96


def test_width_gives_channels_divisible_by_8():
    model = mobilenet_v2(width=0.35)
    assert {m.out_channels % 8 for m in model.modules() if isinstance(m, nn.Conv2d)} == {0}
    assert model.classifier[1].in_features == 1280


def test_shortcut_is_added_where_the_shape_stays():
    model = mobilenet_v2().eval()
    x = torch.randn(1, 24, 8, 8)
    block = model.features[3]
    torch.testing.assert_close(block(x), x + block.conv(x))
    assert not model.features[2].use_shortcut


@pytest.mark.parametrize("arguments", [{"strides": "tiny"}, {"width": 0.0}])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        mobilenet_v2(**arguments)
