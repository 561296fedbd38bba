"""Masking and slimming: what they promise, what they refuse, and that the comparison between them can fail."""

import copy
import logging

import numpy as np
import pytest
import torch
import zoo
from small import Net, image
from torch import nn
from zoo import captured_of, first_of, traced

from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError, VerificationError
from graphprune.passes.fx.analyze import analyze, trace
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.cut import cut_tensors
from graphprune.passes.fx.outputs import difference, run
from graphprune.passes.fx.slim import mask, slim

# -- masking --------------------------------------------------------------------------------------------


def test_a_masked_model_has_zeros_where_the_plan_says_and_nowhere_else():
    model, graph = traced("Residual")
    plan = graph.plan(first_of(graph, 0, 1))
    masked = mask(model, plan)
    before, after = dict(model.named_parameters()), dict(masked.named_parameters())
    before.update(model.named_buffers())
    after.update(masked.named_buffers())
    for name, tensor in after.items():
        zeroed = torch.zeros_like(tensor, dtype=torch.bool)
        for dim, indices in plan.removed.get(name, {}).items():
            zeroed.index_fill_(dim, torch.tensor(indices), True)
        assert torch.equal(tensor, before[name].masked_fill(zeroed, 0))
    assert "stem.1.running_mean" in plan.removed
    assert "stem.1.num_batches_tracked" not in plan.removed


def test_a_mask_reaches_the_shift_of_a_batch_norm():
    """A zeroed convolution still emits beta: the public ancestors' mistake."""
    model, graph = traced("InvertedResidual")
    expand = next(s for s in graph.sets if s.name == "expand.0")
    masked = mask(model, graph.plan(np.isin(np.arange(graph.n_groups), expand.groups[:5])))
    captured = capture(masked, model.example_inputs())
    node = next(n for n in captured.graph.nodes if "batch_norm" in n.name and n.meta["val"].shape[1] == 12)
    _, (hidden,) = captured.with_taps([node.name])(*model.example_inputs())
    channels = hidden.abs().amax((0, 2, 3))
    assert torch.equal(channels == 0, torch.arange(12) < 5)


def test_integer_buffers_are_not_masked():
    model, graph = traced("Buffers")
    masked = mask(model, graph.plan(first_of(graph, 0)))
    assert torch.equal(masked.order, model.order)


# -- slimming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Residual", "Csp"])
def test_slim_never_touches_its_argument(name):
    model, graph = traced(name)
    captured = captured_of(name)
    for source in (model, captured):
        source.train()
        before = copy.deepcopy(source.state_dict())
        attributes = {n: dict(vars(m)).get("out_channels") for n, m in source.named_modules()}
        code = source.code if isinstance(source, CapturedModule) else None
        slim(source, graph.plan(first_of(graph, 0, 1, 2)), model.example_inputs())
        assert source.training
        assert {n: dict(vars(m)).get("out_channels") for n, m in source.named_modules()} == attributes
        assert code is None or source.code == code
        after = source.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_slim_model_shares_nothing_with_the_model():
    model, graph = traced("Residual")
    slimmed = slim(model, graph.plan(first_of(graph, 1)), model.example_inputs(), graph=graph)
    ours = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not ours & {t.data_ptr() for t in (*slimmed.parameters(), *slimmed.buffers())}


def test_the_mode_and_the_gradients_asked_for_are_kept():
    model, graph = traced("Plain")
    model.train()
    model.features[1].eval()
    model.features[0].weight.requires_grad_(False)
    slimmed = slim(model, graph.plan(first_of(graph, 0)), model.example_inputs(), graph=graph)
    assert slimmed.training
    assert not slimmed.features[1].training
    assert not slimmed.features[0].weight.requires_grad
    assert slimmed.features[4].weight.requires_grad


def test_attributes_of_modules_agree_with_their_parameters():
    model, graph = traced("GroupedMany")
    slimmed = slim(model, graph.plan(first_of(graph, 0)), model.example_inputs(), graph=graph)
    conv, norm = slimmed.grouped
    assert (conv.in_channels, conv.out_channels, conv.groups) == (10, 15, 5)
    assert norm.num_features == 15
    assert slimmed.stem[0].out_channels == 10
    assert "groups=5" in repr(slimmed)


def test_attributes_of_norms_without_parameters_follow_too(recwarn):
    model, graph = traced("InstanceNorms")
    slimmed = slim(model, graph.plan(first_of(graph, 0, 1, 2)), model.example_inputs(), graph=graph)
    assert slimmed.plain.num_features == 5
    slimmed(*model.example_inputs())
    assert not [w for w in recwarn if "num_features" in str(w.message)]


def test_attributes_of_group_norms():
    model, graph = traced("GroupNorms")
    slimmed = slim(model, graph.plan(first_of(graph, 2, 3)), model.example_inputs(), graph=graph)
    assert (slimmed.many.num_groups, slimmed.many.num_channels) == (5, 10)
    assert (slimmed.each.num_groups, slimmed.each.num_channels) == (5, 5)


class NoAffine(nn.Module):
    """Layer norm over positions, whose sizes stay, between layers whose channels go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 6, 1), nn.LayerNorm((4, 4), elementwise_affine=False)
        self.conv2 = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.norm(self.conv1(x)))


def test_a_layer_norm_over_positions_keeps_its_shape():
    model, x = NoAffine(), torch.randn(2, 3, 4, 4)
    graph = trace(model, (x,))
    slimmed = slim(model, graph.plan(first_of(graph, 0)), (x,))
    assert isinstance(slimmed, NoAffine)
    assert slimmed.norm.normalized_shape == (4, 4)


def test_tied_weights_are_cut_once_and_stay_tied():
    model, graph = traced("TiedWeights")
    for source in (model, captured_of("TiedWeights")):
        slimmed = slim(source, graph.plan(first_of(graph, 0, 1)), model.example_inputs(), graph=graph)
        weights = [p for n, p in slimmed.named_parameters(remove_duplicate=False) if p.shape == (7, 5, 3, 3)]
        assert len({id(w) for w in weights}) == 1
    assert sum(p.numel() for p in slimmed.parameters()) == graph.cost.params(~first_of(graph, 0, 1))


def test_sizes_in_the_models_own_python_give_a_captured_graph_and_the_log_says_so(caplog):
    model, graph = traced("Csp")
    with caplog.at_level(logging.INFO, logger="graphprune"):
        slimmed = slim(model, graph.plan(first_of(graph, 0)), model.example_inputs(), graph=graph)
    assert isinstance(slimmed, CapturedModule)
    assert "returned as a captured graph, because its class fixes sizes" in caplog.text


class Strict(nn.Module):
    """Checks its sizes with an assertion of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        assert x.shape[1] == 6, "six"
        return self.conv2(x)


def test_a_model_that_asserts_its_sizes_gives_a_captured_graph():
    model, x = Strict(), torch.randn(2, 3, 4, 4)
    graph = trace(model, (x,))
    assert isinstance(slim(model, graph.plan(first_of(graph, 0)), (x,)), CapturedModule)


def test_a_graph_that_was_cut_takes_any_batch():
    """The size of a folded batch dimension follows from the batch, in the proportion that was cut."""
    model, graph = traced("ShuffleBatch")
    captured = captured_of("ShuffleBatch")
    plan = graph.plan(first_of(graph, 0, 1))
    slimmed, masked = slim(captured, plan), mask(model, plan)
    for batch in (1, 2, 3, 7):
        inputs = model.example_inputs(batch)
        assert difference(run(masked, inputs)[0], run(slimmed, inputs)[0]) < 1e-12


def test_a_model_in_training_mode_is_compared_in_inference_mode_and_comes_back_in_training():
    model, graph = traced("Dropouts")
    captured = captured_of("Dropouts").train()
    for given in (None, analyze(captured)):
        slimmed = slim(captured, graph.plan(first_of(graph, 0, 1)), graph=given, tolerance=1e-9)
        assert slimmed.training
        assert captured.training
        inputs = model.example_inputs()
        masked = mask(model, graph.plan(first_of(graph, 0, 1)))
        assert difference(run(masked, inputs)[0], run(slimmed.eval(), inputs)[0]) < 1e-9
        slimmed.train()
        assert not torch.equal(slimmed(*inputs), slimmed(*inputs))  # dropout is on


def test_without_inputs_the_plan_says_what_to_check_with():
    model, graph = traced("Residual")
    model.float()
    graph = trace(model, model.example_inputs())
    plan = PruningPlan.from_dict(graph.plan(first_of(graph, 0)).to_dict())
    assert isinstance(slim(model, plan), type(model))
    with pytest.raises(PlanError, match="pass example_inputs"):
        slim(model, PruningPlan(plan.removed, plan.shapes))


def test_a_plan_outlives_its_run(tmp_path):
    _, graph = traced("InvertedResidual")
    graph.plan(first_of(graph, 0, 1, 2, 3)).save(tmp_path / "plan.json")
    twin = zoo.build("InvertedResidual")
    slimmed = slim(twin, PruningPlan.load(tmp_path / "plan.json"), twin.example_inputs())
    assert slimmed.expand[0].weight.shape == (11, 3, 1, 1)


def test_nothing_to_remove_gives_an_equal_copy():
    for name in ("Residual", "WeightNorm"):  # the second has no group at all
        model, graph = traced(name)
        slimmed = slim(model, graph.plan(~graph.all_kept()), model.example_inputs(), graph=graph)
        assert slimmed is not model
        assert torch.equal(slimmed(*model.example_inputs()), model(*model.example_inputs()))


def test_half_a_plan_is_refused():
    model, graph = traced("Residual")
    data = graph.plan(first_of(graph, 0)).to_dict()
    del data["removed"]["layer1.1.conv2.weight"]
    with pytest.raises(
        PlanError, match=r"cuts coupled channels of layer1.1.conv2.weight along dimension 0 only in part"
    ):
        slim(model, PruningPlan.from_dict(data), model.example_inputs())


def test_a_plan_for_another_model_is_refused():
    _, graph = traced("Residual")
    other = zoo.build("Plain")
    plan = graph.plan(first_of(graph, 0))
    for call in (lambda: mask(other, plan), lambda: slim(other, plan, other.example_inputs())):
        with pytest.raises(PlanError, match="which the model does not have"):
            call()


# -- parametrized weights, rounding ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WeightNorm", "OldWeightNorm"])
def test_the_original_stays_parametrized(name):
    model, graph = traced_again(name)
    inputs = model.example_inputs()
    names, before = list(model.state_dict()), run(model, inputs)
    slimmed = slim(model, graph.plan(first_of(graph, 0, 1)), inputs, graph=graph)
    assert list(model.state_dict()) == names
    assert torch.equal(run(model, inputs)[0], before[0])
    assert set(dict(slimmed.named_parameters())) == {
        f"{layer}.{part}" for layer, child in model.named_children() for part in ("weight", "bias") if child is not None
    }


def traced_again(name: str):
    """A network that torch cannot copy: made anew."""
    model = zoo.build(name)
    return model, analyze(capture(model, model.example_inputs()))


def test_rounding_is_told_from_a_mistake(monkeypatch):
    """What is rounded differently, and grows on its way through the network, is no mistake; the same size of one is."""

    class Chaotic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 512), nn.Linear(512, 4)

        def forward(self, x):
            return torch.sin(self.fc2(self.fc1(x)) * 1e3)

    torch.manual_seed(0)
    model, inputs = Chaotic(), (torch.randn(4, 64),)
    graph = trace(model, inputs)
    plan = graph.plan(np.arange(graph.n_groups) % 2 == 0)
    slimmed = slim(model, plan, inputs, graph=graph, tolerance=1e-5)
    assert 1e-5 < difference(run(mask(model, plan), inputs)[0], run(slimmed, inputs)[0]) < 1e-3

    def scaled(original):
        def cut(module, plan):
            original(module, plan)
            layer = module.get_submodule("fc2")
            layer.bias = nn.Parameter(layer.bias.detach() * (1 + 1e-6))

        return cut

    for place in ("slim", "cut"):
        monkeypatch.setattr(f"graphprune.passes.fx.{place}.cut_tensors", scaled(cut_tensors))
    with pytest.raises(VerificationError, match="differ"):
        slim(model, plan, inputs, graph=graph, tolerance=1e-5)


def test_a_mistake_in_what_is_exact_is_found_beside_what_is_not(monkeypatch):
    """A layer before a softmax over channels: without the channels of the softmax, masked and slim have to agree."""

    def forward(net, x):
        return net.last(torch.softmax(net.statistic(torch.relu(net.plain(x))), 1))

    model = Net(forward, plain=nn.Linear(5, 8), statistic=nn.Linear(8, 6), last=nn.Linear(6, 2))
    inputs = image(4, 5)
    graph = trace(model, inputs)
    plan = graph.plan(np.isin(np.arange(graph.n_groups) % 7, (1, 3)))
    slim(model, plan, inputs, graph=graph)

    def shifted(module, plan):
        cut_tensors(module, plan)
        layer = module.get_submodule("plain")
        layer.bias = nn.Parameter(layer.bias.detach() + 0.1)

    for place in ("slim", "cut"):
        monkeypatch.setattr(f"graphprune.passes.fx.{place}.cut_tensors", shifted)
    with pytest.raises(VerificationError, match="differ"):
        slim(model, plan, inputs, graph=graph)
