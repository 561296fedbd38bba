import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.data import ImageSource, Preprocess
from graphprune.passes.errors import VerificationError
from graphprune.passes.fx.cut import named_tensors
from graphprune.passes.fx.outputs import difference, run
from graphprune.reconstruction.layers import find_layers
from graphprune.reconstruction.reconstruct import Reconstruction
from graphprune.reconstruction.rotation import find_basis, require_same_function, rotate, rotate_seen
from graphprune.reconstruction.trunks import find_trunks
from graphprune.verification.verify import require_equal


class Inverted(nn.Module):
    """Blocks as in MobileNetV2 on one trunk; the last reader is a 3x3 convolution, or the classifier itself."""

    def __init__(self, width, normed, biased, ends_in_classifier, seed):
        super().__init__()
        torch.manual_seed(seed)

        def norm(channels):
            if not normed:
                return nn.Identity()
            made = nn.BatchNorm2d(channels)
            nn.init.uniform_(made.weight, -1.5, 1.5)
            nn.init.normal_(made.bias, std=0.3)
            nn.init.normal_(made.running_mean, std=0.3)
            nn.init.uniform_(made.running_var, 0.3, 3)
            return made

        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU6())
        self.enter = nn.Sequential(nn.Conv2d(6, width, 1, bias=biased), norm(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 12, 1, bias=False),
                norm(12),
                nn.ReLU6(),
                nn.Conv2d(12, 12, 3, padding=1, groups=12),
                nn.ReLU6(),
                nn.Conv2d(12, width, 1, bias=biased),
                norm(width),
            )
            for _ in range(2)
        )
        self.last = None if ends_in_classifier else nn.Conv2d(width, 8, 3, padding=1)
        self.head = nn.Linear(width if ends_in_classifier else 8, 4)

    def forward(self, x):
        x = self.enter(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head((x if self.last is None else F.relu(self.last(x))).mean((2, 3)))


def pictures(number=120, seed=0):
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.normal(size=(number, 3, 3, 3)).astype(np.float32))
    return F.interpolate(coarse, size=(8, 8), mode="bilinear").numpy()


def source(number=120):
    pixels = np.ascontiguousarray(pictures(number).transpose(0, 2, 3, 1))
    return ImageSource(pixels, Preprocess.of((8, 8), 3, mean=(0.0,), std=(1.0,)))


def traced(model):
    return gp.trace(model, (torch.from_numpy(pictures(4)),))


def orthogonal(size, seed):
    torch.manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]


@given(width=st.integers(2, 6), normed=st.booleans(), biased=st.booleans(), ends=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=3, deadline=None)
def test_a_trunk_in_any_basis_computes_the_same(width, normed, biased, ends, seed):
    model = Inverted(width, normed, biased or normed, ends, seed).eval()
    graph = traced(model)
    (trunk,) = find_trunks(graph, find_layers(graph)[0])
    assert (len(trunk.writers), len(trunk.readers)) == (3, 3)
    changed = rotate(trunk, orthogonal(width, seed), named_tensors(graph.front_end.module))
    state = model.state_dict()
    assert not torch.equal(changed["enter.0.weight"], state["enter.0.weight"])
    turned = copy.deepcopy(model)
    turned.load_state_dict({**state, **changed})
    inputs = (torch.from_numpy(pictures(16, seed=1)),)
    assert difference(run(model, inputs)[0], run(turned, inputs)[0]) < 1e-5


def test_the_onnx_file_of_a_rotated_network_computes_the_same(tmp_path):
    model = Inverted(5, True, True, False, 3).eval()
    graph = traced(model)
    (trunk,) = find_trunks(graph, find_layers(graph)[0])
    turned = copy.deepcopy(model)
    changed = rotate(trunk, orthogonal(5, 1), named_tensors(graph.front_end.module))
    turned.load_state_dict({**model.state_dict(), **changed})
    batch = pictures(8, seed=2)
    gp.export_onnx(turned, (torch.from_numpy(batch),), tmp_path / "rotated.onnx")
    require_equal(model, tmp_path / "rotated.onnx", batch, labels=("model", "rotated.onnx"))


class Told(nn.Module):
    """A trunk that something tells the channels of apart."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.enter, self.block = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.depth, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.gate, self.scale = nn.Linear(6, 6), nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(12 if how == "concatenated" else 6, 4)

    def forward(self, x):
        x = self.enter(x)
        x = x + self.block(F.relu(self.depth(x)) if self.how == "depthwise" else x)
        if self.how == "activation":
            x = F.relu(x)
        if self.how == "norm":
            x = self.norm(x)
        if self.how == "gate":
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        if self.how == "scale":
            x = x * self.scale
        if self.how == "constant":
            x = x + self.scale
        pooled = x.mean((2, 3))
        if self.how == "concatenated":
            pooled = torch.cat([pooled, pooled], 1)
        out = self.head(pooled)
        return (out, x) if self.how == "output" else out


@pytest.mark.parametrize(
    ("how", "count"),
    [
        ("nothing", 1),
        ("depthwise", 0),
        ("activation", 0),
        ("norm", 0),
        ("gate", 0),
        ("scale", 0),
        ("constant", 0),
        ("concatenated", 0),
        ("output", 0),
    ],
)
def test_a_trunk_is_linear_where_nothing_tells_its_channels_apart(how, count):
    graph = traced(Told(how).eval())
    trunks = find_trunks(graph, find_layers(graph)[0])
    assert len(trunks) == count


def test_a_flattened_trunk_is_turned_at_every_position():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(20, 4)).eval()
    graph = traced(model)
    (trunk,) = find_trunks(graph, find_layers(graph)[0])
    changed = rotate(trunk, orthogonal(5, 0), named_tensors(graph.front_end.module))
    assert require_same_function(graph.front_end.module, changed, torch.from_numpy(pictures(4))) < 1e-5


def test_a_change_of_the_function_is_refused():
    graph = traced(Inverted(4, True, True, True, 0).eval())
    changed = {"head.weight": torch.zeros(4, 4)}
    with pytest.raises(VerificationError, match="another basis changes the outputs"):
        require_same_function(graph.front_end.module, changed, torch.from_numpy(pictures(4)))


def looked(graph, rotates=True):
    seen = Reconstruction(graph, source(), rotates=rotates)
    seen.look(moments=True)
    return seen


def test_the_first_channels_of_the_basis_keep_most_of_what_is_read():
    """Costs are those of fitting the readers anew, fall, and are below those of any choice of channels."""
    graph = traced(Inverted(6, True, True, True, 5).eval())
    seen = looked(graph)
    (trunk,) = seen.trunks
    tensors = named_tensors(graph.front_end.module)
    basis = find_basis(trunk, seen._seen, tensors)
    assert (basis.costs.diff() <= 1e-9).all()
    torch.testing.assert_close(basis.matrix.T @ basis.matrix, torch.eye(6, dtype=torch.float64))
    plain = looked(graph, rotates=False).scores()[trunk.groups]
    rotated = seen.scores()[trunk.groups]
    for number in range(1, 6):
        assert np.sort(rotated)[:number].sum() <= 1.05 * np.sort(plain)[:number].sum()
    gone = np.array([False, True, False, False, True, False])
    placed = basis.with_last_at(gone)
    assert sorted(placed.costs[gone].tolist()) == sorted(basis.costs[-2:].tolist())


def test_what_was_seen_is_turned_like_the_network():
    """A second look at the turned network sees what was turned in what had been seen."""
    model = Inverted(4, True, True, False, 6).eval()
    graph = traced(model)
    seen = looked(graph)
    (trunk,) = seen.trunks
    matrix = orthogonal(4, 2)
    turned = copy.deepcopy(model)
    turned.load_state_dict({**model.state_dict(), **rotate(trunk, matrix, named_tensors(graph.front_end.module))})
    again = looked(traced(turned))._seen
    for name, own in rotate_seen(trunk, matrix, seen._seen).items():
        for part, other in zip(own.target, again[name].target, strict=True):
            torch.testing.assert_close(part, other, rtol=1e-3, atol=1e-3)
        for part, other in zip(own.read, again[name].read, strict=True):
            torch.testing.assert_close(part, other, rtol=1e-3, atol=1e-3)


def test_a_rotated_trunk_keeps_more_than_a_chosen_one_and_slim_is_masked():
    model = Inverted(6, True, True, False, 7).eval()
    graph = traced(model)
    (trunk,) = find_trunks(graph, find_layers(graph)[0])
    removed = ~graph.all_kept()
    removed[trunk.groups[[1, 4]]] = True
    plan = graph.plan(removed)
    found = gp.reconstruct(model, plan, pictures(400))
    assert "3 to a trunk in another basis" in str(found)
    inputs = (torch.from_numpy(pictures(64, seed=9)),)
    dense, rotated, masked = (run(net.eval(), inputs)[0] for net in (model, found.model, found.masked))
    assert difference(masked, rotated) < 1e-4
    worse = Reconstruction(graph, source(), rotates=False)
    worse.look(moments=False)
    selected = copy.deepcopy(model)
    selected.load_state_dict(worse.fit(plan)[0])
    chosen = run(selected, inputs)[0]
    assert (rotated - dense).square().mean() < (chosen - dense).square().mean()
