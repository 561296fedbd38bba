import torch
import torch.nn.functional as F
from torch import nn

from graphprune.passes.fx.capture import capture
from graphprune.training.taps import find_taps


def shapes_at_taps(model, size=32, channels=3):
    captured = capture(model, (torch.randn(2, channels, size, size),))
    names = find_taps(captured.graph)
    _, features = captured.with_taps(names)(torch.randn(2, channels, size, size))
    return [tuple(f.shape[1:]) for f in features], names, captured


def conv(i, o, stride=1):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Block(nn.Module):
    """Bottleneck whose stride is in the middle, so that a tensor inside the branch changes resolution too."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.inside = nn.Sequential(conv(i, 4), conv(4, 4, stride), nn.Conv2d(4, o, 1))
        self.stride = stride
        self.pad = o - i

    def forward(self, x):
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.pad))
        return F.relu(self.inside(x) + shortcut)


class Classifier(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem = conv(3, 8)
        self.stages = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2), Block(16, 24, 2), Block(24, 24, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = self.stages(self.stem(x))
        return self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 4), conv(4, 8), conv(8, 12)
        self.up2, self.up1 = conv(20, 8), conv(12, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([b, F.interpolate(c, scale_factor=2.0)], 1))
        a = self.up1(torch.cat([a, F.interpolate(b, scale_factor=2.0)], 1))
        return self.head(a)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(conv(3, 4), conv(4, 8, 2))
        self.box, self.score = nn.Sequential(conv(8, 6), nn.Conv2d(6, 4, 1)), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.trunk(x)
        return {"box": self.box(x), "score": torch.sigmoid(self.score(x))}


def test_a_residual_classifier_is_tapped_on_its_trunk_before_each_change_of_resolution():
    found, _, _ = shapes_at_taps(Classifier())
    assert found == [(8, 32, 32), (16, 16, 16), (24, 8, 8), (24,)]


def test_the_tap_is_the_last_tensor_of_its_resolution():
    _, names, captured = shapes_at_taps(Classifier())
    tap = next(n for n in captured.graph.nodes if n.name == names[0])
    assert tap.target is torch.ops.aten.relu.default
    assert all(user.meta["val"].shape != tap.meta["val"].shape for user in tap.users if user.name != "conv2d_4")
    before = next(iter(tap.all_input_nodes))
    assert before.target is torch.ops.aten.add.Tensor


def test_dropout_is_never_tapped():
    found, names, captured = shapes_at_taps(Classifier(dropout=0.5))
    assert found[-1] == (24,)
    targets = [n.target for n in captured.graph.nodes if n.name in names]
    assert torch.ops.aten.dropout.default not in targets


def test_a_plain_network_is_tapped_before_each_pooling():
    model = nn.Sequential(conv(1, 4), nn.MaxPool2d(2), conv(4, 8), nn.MaxPool2d(2), conv(8, 8), nn.Flatten())
    model.append(nn.Linear(8 * 16, 3))
    found, _, _ = shapes_at_taps(model, size=16, channels=1)
    assert found == [(4, 16, 16), (8, 8, 8), (8, 4, 4), (128,)]


def test_a_network_with_skips_is_tapped_at_each_resolution_and_before_its_head():
    found, _, _ = shapes_at_taps(UNet())
    assert (12, 8, 8) in found  # the bottom
    assert found[-1] == (4, 32, 32)
    assert {shape[1:] for shape in found} == {(32, 32), (16, 16), (8, 8)}


def test_what_does_not_have_the_samples_first_is_not_tapped():
    class Blurred(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.head = conv(3, 8), conv(8, 16), nn.Linear(16, 10)

        def forward(self, x):
            x = self.first(x)
            x = F.conv2d(x.reshape(-1, 1, *x.shape[2:]), torch.ones(1, 1, 2, 2) / 4, stride=2)
            return self.head(self.last(x.reshape(-1, 8, *x.shape[2:])).mean((2, 3)))

    shapes, _, captured = shapes_at_taps(Blurred())
    assert shapes == [(8, 32, 32), (16, 16, 16), (16,)]
    _, features = captured.with_taps(find_taps(captured.graph))(torch.zeros(5, 3, 32, 32))
    assert [len(feature) for feature in features] == [5, 5, 5]


def test_every_head_is_tapped():
    found, _, _ = shapes_at_taps(TwoHeads())
    assert (6, 16, 16) in found
    assert (8, 16, 16) in found


def test_a_network_of_one_layer_has_nothing_to_tap():
    found, _, _ = shapes_at_taps(nn.Conv2d(3, 2, 3))
    assert found == []


def test_deep_networks_are_tapped_at_a_few_points_only():
    layers = []
    for _ in range(12):
        layers += [nn.Conv2d(3, 3, 3), nn.ReLU()]
    _, names, _ = shapes_at_taps(nn.Sequential(*layers))
    assert 2 <= len(names) <= 8
