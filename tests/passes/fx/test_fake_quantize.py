"""Networks that were trained with fake quantization: ranges stay as they are, and those of channels go with them."""

import copy

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.ao import quantization as ao

from graphprune.formats.export import export_onnx
from graphprune.passes.fx.analyze import trace
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.fake_quantize import FixedRange
from graphprune.passes.fx.slim import mask, slim

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao is on its way to another package

PER_CHANNEL = ao.QConfig(
    activation=ao.FakeQuantize.with_args(observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
    weight=ao.default_per_channel_weight_fake_quant,
)
PER_TENSOR = ao.QConfig(activation=PER_CHANNEL.activation, weight=ao.default_weight_fake_quant)
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.first, self.norm, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.second, self.head = nn.Conv2d(6, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.second(self.relu(self.norm(self.first(self.quant(x)))))
        return self.head(self.dequant(x).mean((2, 3)))


def trained(config, fused=False):
    torch.manual_seed(0)
    net = Net().train()
    net.qconfig = config
    net = ao.prepare_qat(ao.fuse_modules_qat(net, [["first", "norm", "relu"]]) if fused else net)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 6, 6))
    return net.eval()


def ways():
    fused = ao.get_default_qat_qconfig("x86")
    return [
        pytest.param(PER_CHANNEL, False, id="a scale a channel"),
        pytest.param(PER_TENSOR, False, id="one scale"),
        pytest.param(fused, True, id="observed and rounded at once"),
    ]


def still(net):
    """The user's network, which observes nothing any more."""
    return copy.deepcopy(net).apply(ao.disable_observer)


@pytest.mark.parametrize(("config", "fused"), ways())
def test_scales_go_with_their_channels_and_nothing_is_observed(config, fused):
    net = trained(config, fused)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    captured = capture(net, (X,))
    torch.testing.assert_close(captured(X), still(net)(X))
    graph = trace(net, (X,))
    assert not graph.unknown
    assert sorted(len(found.groups) for found in graph.sets) == [4, 6]
    removed = torch.zeros(graph.n_groups, dtype=torch.bool).numpy()
    for found in graph.sets:
        removed[found.groups[::2]] = True
    plan = graph.plan(removed)
    slimmed = slim(net, plan, (X,))
    torch.testing.assert_close(slimmed(X), mask(net, plan)(X), rtol=1e-5, atol=1e-5)
    sizes = [
        module.scale.numel() for module in slimmed.modules() if isinstance(module, FixedRange) and module.axis == 0
    ]
    assert sizes == ([] if config is PER_TENSOR else [3, 2, 3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("is_on", [True, False])
def test_an_exported_program_that_observes_is_cut_like_the_network(is_on):
    net = trained(ao.get_default_qat_qconfig("x86"), fused=True)
    if not is_on:
        net.apply(ao.disable_fake_quant)
    program = torch.export.export(net, (X,))
    graph = trace(program)
    assert not graph.unknown
    assert sorted(len(found.groups) for found in graph.sets) == [4, 6]
    torch.testing.assert_close(capture(program)(X), still(net)(X))
    kinds = {str(node.target) for node in capture(program).graph.nodes}
    assert ("aten.fake_quantize_per_channel_affine.default" in kinds) is is_on


@pytest.mark.parametrize(("config", "fused"), ways())
def test_it_becomes_a_file_that_rounds_alike(tmp_path, config, fused):
    """Compared as it is written: kernels that compute in bytes saturate on some processors.

    Weights at the end of a symmetric range stand between two steps, and may be rounded either way.
    """
    net = trained(config, fused)
    with torch.no_grad():
        net.second.weight[:, 0, 0, 0] = -2 * net.second.weight.abs().max()
        net.apply(ao.enable_observer)(X)
    path = export_onnx(net, (X,), tmp_path / "net.onnx")
    assert "DequantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options)
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), still(net)(X), rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_what_is_rounded():
    captured = capture(trained(PER_CHANNEL), (X,))
    captured(X).square().sum().backward()
    assert captured.get_parameter("first.weight").grad.abs().sum() > 0


def test_zero_beyond_the_range_is_no_zero_any_more():
    """The zero point lies outside of what the integers hold, so that zero becomes another number."""

    class Off(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(torch.fake_quantize_per_tensor_affine(self.first(x), 0.1, self.point, 0, 15) ** 2)

    for point, is_zero in ((3, True), (-2, False)):
        net = Off().eval()
        net.point = point
        graph = trace(net, (X,))
        env = graph.front_end.env
        value = next(known for node, known in env.items() if node.name.startswith("fake_quantize"))
        assert value.facets[0].zero.all() == is_zero
