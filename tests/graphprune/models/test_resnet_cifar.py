import pytest
import torch
from torch.nn import functional as F

from graphprune.models import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from graphprune.models.resnet_cifar import OptionAShortcut


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [(resnet20, 269722), (resnet32, 464154), (resnet44, 658586), (resnet56, 853018), (resnet110, 1727962)],
)
def test_parameters_are_those_of_the_paper(factory, parameters):
    assert sum(p.numel() for p in factory().parameters()) == parameters


def test_names_are_those_of_the_reference_weights():
    names = set(resnet20().state_dict())
    assert {"conv1.weight", "bn1.running_var", "linear.weight", "linear.bias"} <= names
    assert {"layer1.0.conv1.weight", "layer2.0.bn2.bias", "layer3.2.conv2.weight"} <= names
    # Option A: a shortcut has no parameters, and no convolution has a bias.
    assert not [name for name in names if "shortcut" in name or ("conv" in name and name.endswith("bias"))]
    assert len(names) == 2 + 19 * 6


def test_shortcut_takes_every_second_pixel_and_pads_both_sides_with_zeros():
    x = torch.arange(2 * 4 * 5 * 5, dtype=torch.float32).reshape(2, 4, 5, 5)
    y = OptionAShortcut(8)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_forward_equals_the_blocks_written_out():
    torch.manual_seed(0)
    model = resnet20(num_classes=4).eval()
    x = torch.randn(2, 3, 16, 16)
    out = F.relu(model.bn1(model.conv1(x)))
    for layer in (model.layer1, model.layer2, model.layer3):
        for block in layer:
            branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(out)))))
            if branch.shape != out.shape:
                quarter = branch.shape[1] // 4
                out = F.pad(out[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
            out = F.relu(branch + out)
    expected = model.linear(out.mean((2, 3)))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_gray_digits_and_other_class_numbers():
    model = resnet20(num_classes=3, in_channels=1).eval()
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 3)


@pytest.mark.parametrize("depth", [2, 21, 54])
def test_depths_that_are_not_6n_plus_2_are_refused(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        CifarResNet(depth)
