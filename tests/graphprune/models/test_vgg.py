import pytest
import torch
from torch import nn

from graphprune.models import vgg16_bn, vgg16_bn_linear, vgg_small


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_vgg_small_is_one_sequence_without_bias():
    model = vgg_small()
    assert count(model) == 14_724_042
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.ndim == 4}
    assert shapes["features.0.weight"] == (64, 3, 3, 3)
    assert shapes["features.14.weight"] == (256, 128, 3, 3)
    assert shapes["features.40.weight"] == (512, 512, 3, 3)
    assert len(shapes) == 13
    assert "features.0.bias" not in model.state_dict()
    assert model.classifier.weight.shape == (10, 512)
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vgg16_for_cifar_has_one_linear_layer():
    model = vgg16_bn(num_classes=7)
    assert isinstance(model.classifier, nn.Linear)
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_vgg16_for_imagenet_has_torchvisions_shapes():
    with torch.device("meta"):
        model = vgg16_bn(num_classes=1000, image_size=224)
    assert count(model) == 138_365_992
    names = {name for name, _ in model.named_parameters()}
    assert {"features.0.bias", "features.41.weight", "classifier.0.weight", "classifier.6.bias"} <= names
    assert model(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 1000)


def test_vgg16_refuses_images_that_it_would_halve_to_nothing():
    with pytest.raises(ValueError, match="image_size is 16"):
        vgg16_bn(image_size=16)


def test_vgg16_has_the_papers_linear_layers_at_any_size_when_asked():
    model = vgg16_bn_linear(num_classes=7)
    assert [layer.weight.shape for layer in model.classifier if hasattr(layer, "weight")] == [
        (4096, 512),
        (4096, 4096),
        (7, 4096),
    ]
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
