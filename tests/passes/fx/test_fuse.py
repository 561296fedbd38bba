import copy

import pytest
import torch
from torch import nn

from graphprune import models
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.fuse import activate_in_place, fold_norms, hold_still

aten = torch.ops.aten


def prepared(net, shape=(4, 3, 8, 8)):
    """The network, captured, with statistics of its own."""
    torch.manual_seed(0)
    images = torch.randn(shape)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return capture(net.eval(), (images,)), images


def operators(module):
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


FOLDABLE = [
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (4, 3, 8, 8)),
    (nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", groups=2, bias=False), nn.BatchNorm2d(8)), (4, 4, 8, 8)),
    (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, affine=False)), (4, 3, 8)),
    (nn.Sequential(nn.Conv3d(3, 4, 3, stride=2), nn.BatchNorm3d(4)), (2, 3, 5, 5, 5)),
    (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), (4, 6)),
    (models.resnet20(), (2, 3, 32, 32)),
    (models.mobilenet_v2(), (2, 3, 32, 32)),
]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("net", "shape"), FOLDABLE)
def test_a_network_with_its_norms_folded_computes_the_same(net, shape):
    module, images = prepared(net, shape)
    expected, weights = module(images), copy.deepcopy(module.state_dict())
    fold_norms(module)
    assert aten.batch_norm.default not in operators(module)
    close(module(images), expected)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in weights.items())


@pytest.mark.parametrize(("net", "shape"), FOLDABLE)
def test_norms_that_are_folded_in_each_pass_learn_as_before(net, shape):
    module, images = prepared(net, shape)
    module, images = module.double(), images.double()
    other = copy.deepcopy(module)
    fold_norms(other, live=True)
    assert aten.batch_norm.default not in operators(other)
    results = []
    for one in (module, other):
        out = one(images)
        torch.autograd.backward(out.square().sum())
        results.append([out, *(parameter.grad for parameter in one.parameters())])
    for found, expected in zip(*results, strict=True):
        close(found, expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(other(images), results[1][0])


@pytest.mark.parametrize("is_folded", [False, True])
def test_what_hardly_varies_is_not_moved_before_a_frozen_norm(is_folded):
    """Channels: one that varies, one that does not, and one that does not and is not passed on either."""
    module, images = prepared(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), (4, 3, 8, 8))
    weight, norm = module.get_parameter("0.weight"), [module.get_parameter(f"1.{name}") for name in ("weight", "bias")]
    with torch.no_grad():
        module.get_buffer("1.running_var")[1:] = 1e-7
        norm[0][:] = torch.tensor([1.0, 1.0, 0.0])
    expected = module(images)
    if is_folded:
        fold_norms(module, live=True)
    hold_still(module)
    assert (aten.batch_norm.default in operators(module)) != is_folded
    close(module(images), expected)
    module(images).square().sum().backward()
    moved = [weight.grad.abs().sum((1, 2, 3)), module.get_parameter("0.bias").grad.abs(), norm[1].grad.abs()]
    assert [(values > 0).tolist() for values in moved] == [[True, False, False]] * 2 + [[True] * 3]


def test_norms_whose_input_varies_are_left_as_they_are():
    module, _ = prepared(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    before = operators(module)
    hold_still(module)
    with torch.no_grad():
        module.get_parameter("1.weight")[0] = 0
        module.get_buffer("1.running_var")[0] = 0
    hold_still(module)
    assert operators(module) == before


def test_layers_in_bfloat16_are_folded_with_the_digits_of_float32():
    torch.manual_seed(0)
    module, images = prepared(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)))
    small = copy.deepcopy(module).bfloat16()
    again = copy.deepcopy(small)
    fold_norms(small, live=True)
    fold_norms(again)
    assert torch.equal(small(images.bfloat16()), again(images.bfloat16()))


@pytest.mark.parametrize("live", [False, True])
def test_layers_of_fewer_digits_than_their_norms_stay_so(live):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3).bfloat16(), nn.BatchNorm2d(4)).eval()
    images = torch.randn(4, 3, 8, 8).bfloat16()
    module = capture(net, (images,))
    expected = module(images)
    fold_norms(module, live=live)
    torch.testing.assert_close(module(images), expected, rtol=0.05, atol=0.05)


class Two(nn.Module):
    """A convolution that the norm does not have for itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Two(), (4, 3, 8, 8)),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (4, 4, 6)),  # four positions, four channels
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), (4, 3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), (4, 3, 8, 8)),
    ],
)
def test_a_norm_that_is_not_the_layers_own_stays(net, shape, live):
    module, images = prepared(net, shape)
    expected = module(images)
    fold_norms(module, live=live)
    assert aten.batch_norm.default in operators(module)
    assert torch.equal(module(images), expected)


def test_a_norm_whose_folded_weights_are_no_numbers_stays():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0))
    module, _ = prepared(net)
    module.get_buffer("1.running_var").zero_()
    fold_norms(module)
    assert aten.batch_norm.default in operators(module)


@pytest.mark.parametrize("net", [models.resnet20(), models.mobilenet_v2(), models.vgg_small()])
def test_activations_in_place_change_neither_results_nor_gradients(net):
    module, images = prepared(net, (2, 3, 32, 32))
    other = copy.deepcopy(module)
    activate_in_place(other)
    assert aten.relu.default not in operators(other)
    for mode in (False, True):
        found = []
        for one in (module, other):
            one.train(mode)
            one.zero_grad()
            torch.manual_seed(1)  # of dropout
            out = one(images.clone())
            out.square().sum().backward()
            found.append([out, *(p.grad for p in one.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Read(nn.Module):
    """What the activation is given is read again, is a view, or is the input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return y.relu() + y, self.conv(x.relu()).view(-1).relu()


def test_what_others_read_is_not_written_over():
    module, images = prepared(Read())
    before, expected = images.clone(), module(images)
    activate_in_place(module)
    assert operators(module).count(aten.relu.default) == 3
    assert all(torch.equal(a, b) for a, b in zip(module(images), expected, strict=True))
    assert torch.equal(images, before)
