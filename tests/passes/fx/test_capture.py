import copy

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.analyze import analyze, trace
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule


@pytest.fixture
def plain():
    model = zoo.build("Plain")
    return model, capture(model, model.example_inputs())


def test_a_captured_model_computes_the_same_for_any_batch(plain):
    model, captured = plain
    assert isinstance(captured, CapturedModule)
    for batch in (1, 2, 5):
        inputs = model.example_inputs(batch)
        assert torch.equal(captured(*inputs), model(*inputs))


def test_one_example_is_enough_for_a_variable_batch():
    model = zoo.build("Residual")
    captured = capture(model, model.example_inputs(1))
    assert captured.example_inputs[0].shape[0] == 2
    inputs = model.example_inputs(3)
    assert torch.equal(captured(*inputs), model(*inputs))


def test_parameters_keep_their_names_and_are_copies(plain):
    model, captured = plain
    expected = dict(model.named_parameters())
    found = dict(captured.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name])
        assert parameter.data_ptr() != expected[name].data_ptr()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for tensor in (*captured.parameters(), *captured.buffers()):
            tensor.zero_()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_capture_leaves_the_mode_of_the_model_alone():
    model = zoo.build("Plain")
    model.train()
    model.features[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    captured = capture(model, model.example_inputs())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not captured.training


def test_training_mode_updates_running_statistics_and_evaluation_does_not(plain):
    model, captured = plain
    inputs = model.example_inputs(4)
    captured.eval()
    before = captured.get_buffer("features.1.running_mean").clone()
    captured(*inputs)
    assert torch.equal(captured.get_buffer("features.1.running_mean"), before)
    captured.train()
    assert captured.training
    captured(*inputs)
    assert not torch.equal(captured.get_buffer("features.1.running_mean"), before)
    reference = model.train()
    reference(*inputs)
    assert torch.allclose(captured.get_buffer("features.1.running_mean"), reference.features[1].running_mean)
    assert torch.allclose(captured.get_buffer("features.1.running_var"), reference.features[1].running_var)


def test_training_mode_without_dropout_computes_what_the_model_does():
    model = zoo.build("Residual")
    captured = capture(model, model.example_inputs())
    inputs = model.example_inputs(4)
    assert torch.allclose(captured.train()(*inputs), model.train()(*inputs))
    assert torch.allclose(captured.eval()(*inputs), model.eval()(*inputs))


class OneDropout(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x * 1.5)


DROPOUTS = [
    nn.Dropout(),
    nn.Dropout(inplace=True),
    nn.Dropout1d(),
    nn.Dropout2d(),
    nn.Dropout2d(inplace=True),
    nn.Dropout3d(),
    nn.AlphaDropout(),
    nn.AlphaDropout(inplace=True),
    nn.FeatureAlphaDropout(),
    nn.RReLU(0.1, 0.9),
    nn.RReLU(0.1, 0.9, inplace=True),
]


@pytest.mark.parametrize("layer", DROPOUTS, ids=str)
def test_every_kind_of_dropout_is_switched(layer):
    shape = (2, 8, 4, 4, 4) if isinstance(layer, nn.Dropout3d) else (2, 8, 4)
    shape = (2, 8, 4, 4) if isinstance(layer, nn.Dropout2d) else shape
    x = -torch.ones(shape)
    captured = capture(OneDropout(layer), (x,))
    torch.manual_seed(0)
    assert len(captured(x).unique()) == 1
    assert len(captured.train()(x).unique()) > 1
    assert len(captured.eval()(x).unique()) == 1


def test_instance_norm_with_running_statistics_is_switched():
    model = OneDropout(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    captured = capture(model, (x,))
    assert torch.allclose(captured(x), model(x))
    assert torch.allclose(captured.train()(x), model.train()(x))
    assert torch.allclose(captured.layer.running_mean, model.layer.running_mean)
    assert captured.layer.running_mean.abs().sum() > 0


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3)], ids=str)
def test_norms_without_running_statistics_use_the_batch_in_either_mode(layer):
    x = torch.randn(4, 3, 4, 4)
    captured = capture(OneDropout(layer), (x,))
    for mode in (False, True, False):
        assert torch.allclose(captured.train(mode)(x), layer(x * 1.5))


def test_a_captured_model_trains():
    torch.manual_seed(0)
    model = zoo.build("InvertedResidual", torch.float32)
    captured = capture(model, model.example_inputs()).train()
    optimizer = torch.optim.SGD(captured.parameters(), lr=0.01)
    (x,) = model.example_inputs(8)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(captured(x), torch.arange(8) % 5)
        loss.backward()
        assert all(p.grad is not None for p in captured.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_taps_return_results_of_nodes_and_share_parameters():
    model = zoo.build("DictOutput")
    captured = capture(model, model.example_inputs())
    names = [n.name for n in captured.graph.nodes if "relu" in str(n.target)]
    tapped = captured.with_taps(names)
    inputs = model.example_inputs(3)
    outputs, taps = tapped(*inputs)
    expected = model(*inputs)
    assert outputs.keys() == expected.keys()
    assert all(torch.equal(outputs[k], expected[k]) for k in expected)
    assert torch.equal(taps[0], F.relu(model.stem(*inputs)))
    assert torch.equal(taps[1], F.relu(model.body(taps[0])))
    assert {p.data_ptr() for p in tapped.parameters()} == {p.data_ptr() for p in captured.parameters()}


def test_taps_are_switched_apart_from_their_source():
    model = zoo.build("Plain")
    captured = capture(model, model.example_inputs())
    tapped = captured.with_taps([])
    inputs = model.example_inputs()
    tapped.train()
    assert not torch.equal(tapped(*inputs)[0], model(*inputs))
    assert torch.equal(captured(*inputs), capture(captured)(*inputs))
    tapped.eval()
    assert not tapped.training
    assert torch.equal(tapped(*inputs)[0], captured(*inputs))


def test_a_tap_that_is_no_node_is_named():
    model = zoo.build("Plain")
    with pytest.raises(KeyError, match="no node named nowhere"):
        capture(model, model.example_inputs()).with_taps(["nowhere"])


def test_two_outputs_and_two_inputs():
    for name in ("TwoOutputs", "TwoInputs"):
        model = zoo.build(name)
        captured = capture(model, model.example_inputs())
        inputs = model.example_inputs(3)
        expected, found = model(*inputs), captured(*inputs)
        assert type(found) is type(expected)
        for a, b in zip(*([v] if isinstance(v, torch.Tensor) else v for v in (expected, found)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mode", [False, True])
def test_a_program_that_was_exported_in_training_says_so(mode, caplog):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.RReLU(), nn.Dropout(0.5)).train(mode)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),))
    with caplog.at_level("INFO", "graphprune"):
        captured = capture(program)
    said = [
        record.getMessage() for record in caplog.records if record.name == "graphprune" and record.levelname == "INFO"
    ]
    assert said == (["the program was exported in training mode; it is used in inference mode"] if mode else [])
    batch = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(batch), net.eval()(batch))


def test_operators_that_are_always_in_training_are_said_to_be(caplog):
    class Always(nn.Module):
        def forward(self, x):
            return F.dropout(x + 1, 0.5)

    with caplog.at_level("INFO", "graphprune"):
        captured = capture(Always().eval(), (torch.zeros(2, 3),))
    assert torch.equal(captured(torch.zeros(2, 3)), torch.ones(2, 3))
    assert "the model's code has operators of training in inference mode" in caplog.text


def test_copies_are_independent(plain):
    model, captured = plain
    twin = copy.deepcopy(captured)
    assert isinstance(twin, CapturedModule)
    assert twin.example_inputs[0].shape == captured.example_inputs[0].shape
    with torch.no_grad():
        twin.get_parameter("classifier.0.weight").zero_()
    twin.train()
    assert not captured.training
    inputs = model.example_inputs()
    assert torch.equal(captured(*inputs), model(*inputs))
    assert analyze(twin).n_groups == analyze(captured).n_groups
    assert trace(twin).n_groups == 24


def test_state_dicts_go_both_ways(plain):
    model, captured = plain
    other = zoo.Plain().double().eval()
    other.load_state_dict(captured.state_dict(), strict=False)
    inputs = model.example_inputs()
    assert torch.equal(other(*inputs), model(*inputs))
    zoo.randomize(other, seed=7)
    captured.load_state_dict({k: v for k, v in other.state_dict().items() if k in captured.state_dict()})
    assert torch.equal(other(*inputs), captured(*inputs))


def test_tied_tensors_stay_tied_under_their_first_name():
    model = zoo.build("TiedWeights")
    captured = capture(model, model.example_inputs())
    targets = {n.target for n in captured.graph.nodes if n.op == "get_attr"}
    assert "first.weight" in targets
    assert "second.weight" not in targets


def test_exported_programs_are_captured_with_or_without_inputs():
    model = zoo.build("Residual")
    inputs = model.example_inputs()
    program = torch.export.export(model, inputs, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    for captured in (capture(program), capture(program, inputs)):
        other = model.example_inputs(3)
        assert torch.equal(captured(*other), model(*other))
        assert analyze(captured).n_groups == 48
    program.example_inputs = None
    with pytest.raises(CaptureError, match="no example inputs"):
        capture(program)


@pytest.mark.parametrize("name", ["Residual", "SqueezeExcite", "Mlp"])
def test_decomposed_programs_have_the_same_groups(name):
    """Programs that went through the core ATen decompositions use other operators for the same network."""
    model = zoo.build(name)
    program = torch.export.export(model, model.example_inputs(), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    graph = analyze(capture(program.run_decompositions()))
    assert graph.unknown == {}
    assert graph.n_groups == trace(model, model.example_inputs()).n_groups


def test_a_captured_model_can_be_exported_again(plain):
    model, captured = plain
    inputs = captured.example_inputs
    program = torch.export.export(captured, inputs, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    again = capture(program)
    other = model.example_inputs(5)
    assert torch.equal(again(*other), model(*other))
    assert analyze(again).n_groups == 24


def test_captured_models_are_returned_as_they_are(plain):
    _, captured = plain
    assert capture(captured, captured.example_inputs) is captured


class Stateful(nn.Module):
    """Its input and its buffer are written to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Buffer(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.mul_(2)) + self.last
        self.last.add_(1)
        return y


def test_capture_leaves_inputs_and_shared_buffers_as_they_are():
    model, x = Stateful(), torch.ones(1, 3, 6, 6)
    captured = capture(model, (x,), share=True)
    assert model.last.item() == 0
    assert torch.equal(x, torch.ones(1, 3, 6, 6))
    assert torch.equal(captured.example_inputs[0], torch.ones(2, 3, 6, 6))


def test_what_nothing_reads_is_no_part_of_the_graph():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model[0].register_parameter("spare", nn.Parameter(torch.zeros(5)))
    captured = capture(model, (torch.randn(2, 3, 4, 4),))
    assert [name for name, _ in captured.named_parameters()] == ["0.weight", "0.bias"]


def test_programs_that_take_inputs_by_name_take_them_by_position():
    net = nn.Linear(3, 2)
    program = torch.export.export(net, (), {"input": torch.ones(2, 3)})
    (inputs,) = capture(program).example_inputs
    assert torch.equal(capture(program)(inputs), net(inputs))


def test_inputs_are_a_tuple():
    with pytest.raises(CaptureError, match="must be a tuple of inputs, got Tensor"):
        capture(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(CaptureError, match="example_inputs are needed"):
        capture(nn.Linear(3, 2))


class Assertion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.shape[1] == 4, "width")
        torch._check(x.shape[0] > 0)
        return self.fc(x.to(torch.float32)[:])


def test_assertions_and_slices_of_everything_are_dropped():
    captured = capture(Assertion(), (torch.randn(2, 4),))
    kinds = {str(n.target) for n in captured.graph.nodes if n.op == "call_function"}
    assert not any("assert" in kind or "slice" in kind for kind in kinds)
    assert captured(torch.randn(3, 4)).shape == (3, 3)


class Splits(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = x.chunk(3, 1)
        d, e, f = x.tensor_split(3, dim=-1)
        g, h = x.tensor_split([3], 1)
        i, j, k, m = x.split(2, dim=1)
        n, o, p = torch.unsafe_chunk(x, 3, 1)
        q, r, s = torch.split(x, [1, 2, 4], 1)
        parts = [torch.cat(group, 1) for group in ([a, b, c], [d, e, f], [g, h], [i, j, k, m], [n, o, p], [q, r, s])]
        return torch.stack(parts).sum(0)


def test_every_split_gets_its_sizes():
    x = torch.randn(2, 7)
    captured = capture(Splits(), (x,))
    kinds = [str(n.target) for n in captured.graph.nodes if "split" in str(n.target) or "chunk" in str(n.target)]
    assert sorted(kinds) == ["aten.split_with_sizes.default"] * 5 + ["aten.unsafe_split_with_sizes.default"]
    assert torch.allclose(captured(x), 6 * x)


def test_statistics_without_a_momentum_follow_in_training():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)).eval()
    x = 3 + torch.randn(2, 3, 8, 8)
    program = torch.export.export(net, (x,))
    for captured in (capture(net, (x,)), capture(program)):
        captured.train()(x)
        assert captured.get_buffer("1.running_mean").abs().max() > 0
    assert torch.equal(net[1].running_mean, torch.zeros(4))


@pytest.mark.parametrize("alone", [False, True])
def test_statistics_that_are_frozen_on_purpose_stay(alone):
    frozen = nn.BatchNorm2d(3, momentum=0.0)
    x = 3 + torch.randn(2, 3, 8, 8)
    captured = capture(frozen if alone else nn.Sequential(frozen, nn.Conv2d(3, 4, 3)), (x,))
    captured.train()(x)
    means = [buffer for name, buffer in captured.named_buffers() if name.endswith("running_mean")]
    assert len(means) == 1
    assert torch.equal(means[0], torch.zeros(3))
