"""Masking and slimming: what they promise, what they refuse, and that the comparison between them can fail."""

import copy
import dataclasses
import logging

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError, VerificationError
from graphprune.passes.fx.analyze import analyze, trace
from graphprune.passes.fx.capture import CapturedModule, capture
from graphprune.passes.fx.compare import compare_outputs, difference, run
from graphprune.passes.fx.cut import cut_tensors
from graphprune.passes.fx.slim import mask, slim


def traced(name: str):
    """A network of one's own, and its channel graph, which is shared and not to be changed."""
    model, _, graph = zoo.analyzed(name)
    return copy.deepcopy(model), graph


def captured_of(name: str) -> CapturedModule:
    return copy.deepcopy(zoo.analyzed(name)[1])


def first_of(graph, *sets: int):
    """Flags of the first group of each set."""
    return np.isin(np.arange(graph.n_groups), [graph.sets[i].groups[0] for i in sets])


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


# -- the comparison can fail ----------------------------------------------------------------------------


def test_one_shifted_index_is_noticed_and_its_node_named():
    """An analysis that is off by one at one consumer: consistent in itself, and wrong."""
    model = zoo.build("SigmoidBias")
    graph = trace(model, model.example_inputs())
    key = ("conv2.weight", 1)
    graph.axes[key] = np.roll(graph.axes[key], 1)
    plan = graph.plan(first_of(graph, 0))
    with pytest.raises(VerificationError, match=r"differ first at node conv2d_1 \(conv2 \(norms.py:\d+\)\)") as caught:
        slim(model, plan, model.example_inputs(), graph=graph)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_wrong_size_is_noticed_and_its_node_named():
    graph = analyze(captured_of("Csp"))
    front = graph.front_end
    name, (rule, binding, op) = next((n, o) for n, o in front.ops.items() if o[0].name == "split")
    wrong = dataclasses.replace(rule, resize=lambda op, cut: {"split_sizes": [4, 2]})
    front.ops[name] = (wrong, binding, op)  # [3, 3] would be right
    plan = graph.plan(first_of(graph, 0, 1))
    with pytest.raises(VerificationError, match=r"differ first at node getitem \(getitem\)|node conv2d_1 \(blocks.0.0"):
        slim(front.module, plan, graph=graph)


def cut_producers_alone(model, graph, removed):
    """What a naive mask does: the channels' own weights and biases, and not what reads them."""
    plan = graph.plan(removed)
    producers = {
        name: {0: dims[0]} for name, dims in plan.removed.items() if 0 in dims and not name.startswith("classifier")
    }
    return mask(model, PruningPlan(producers, {n: plan.shapes[n] for n in producers}))


@pytest.mark.parametrize(("name", "naive_is_right"), [("Plain", True), ("SigmoidBias", False)])
def test_a_naive_cut_of_producers_alone_would_fail_where_zero_does_not_stay_zero(name, naive_is_right):
    model, graph = traced(name)
    removed = first_of(graph, 0, 1)
    slimmed = slim(model, graph.plan(removed), model.example_inputs(), graph=graph, tolerance=1e-9)
    naive = cut_producers_alone(model, graph, removed)
    inputs = model.example_inputs()
    assert (difference(run(naive, inputs)[0], run(slimmed, inputs)[0]) < 1e-9) == naive_is_right


def test_a_tolerance_is_kept():
    a, b = [torch.tensor([1.0, 100.0])], [torch.tensor([1.005, 100.0])]
    assert compare_outputs(a, b, 1e-4, "this") == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(VerificationError, match=r"this differs from the masked model by 5e-05 \(allowed 1e-05\)"):
        compare_outputs(a, b, 1e-5, "this")
    with pytest.raises(VerificationError, match="gives 2 outputs, the masked model 1"):
        compare_outputs(a, [*b, *b], 1.0, "this")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("reference", "other", "expected"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.25),
        (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]]), INF),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), 0.0),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), INF),
        (torch.tensor([True]), torch.tensor([False]), INF),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, 2.0]), INF),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, NAN]), INF),
        (torch.tensor([1.0, INF]), torch.tensor([1.0, INF]), 0.0),
        (torch.tensor([1.0, INF]), torch.tensor([1.0, -INF]), INF),
        (torch.tensor([]), torch.tensor([]), 0.0),
        (torch.tensor([3 + 4j]), torch.tensor([3 + 4j + 1e-9]), 0.0),
        (torch.tensor([3 + 4j]), torch.tensor([-3 + 4j]), 1.2),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.zeros(2), torch.ones(2), 1e12),
    ],
)
def test_difference_is_relative_and_never_forgives(reference, other, expected):
    assert difference(reference, other) == pytest.approx(expected, abs=1e-6)


# -- whole branches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Residual", "InvertedResidual", "SqueezeExcite", "NonLocal", "AttentionSdpa"])
def test_a_whole_branch_goes(name):
    """The branch is folded into the constant that it computes, whatever its operators (add, add_, mul)."""
    model, graph = traced(name)
    branch = next(s for s in graph.sets if s.bypassed)
    plan = graph.plan(np.isin(np.arange(graph.n_groups), branch.groups))
    removed = graph.removed_by(plan)
    assert removed[branch.groups].all()
    captured = captured_of(name)
    slimmed = slim(captured, plan, graph=graph, tolerance=1e-9)
    for batch in (1, 3):
        inputs = model.example_inputs(batch)
        assert difference(run(mask(model, plan), inputs)[0], run(slimmed, inputs)[0]) < 1e-9
    convolutions = [sum("conv" in n.name or "linear" in n.name for n in m.graph.nodes) for m in (captured, slimmed)]
    assert convolutions[1] < convolutions[0]
    assert all(0 not in p.shape for p in slimmed.parameters())
    again = analyze(slimmed)
    assert again.cost.macs(again.all_kept()) == graph.cost.macs(~removed)


@pytest.mark.parametrize(("shift", "left"), [(0.5, 1), (0.0, 0)])
def test_of_a_branch_that_adds_nothing_nothing_is_left(shift, left):
    """The add goes, and the relu behind it, as what it reads comes from a relu."""
    model, _ = traced("Residual")
    with torch.no_grad():
        norm = model.layer1[0].bn2
        norm.bias.fill_(shift)
        norm.running_mean.zero_()
    captured = capture(model, model.example_inputs())
    graph = analyze(captured)
    inner = next(s for s in graph.sets if s.name == "layer1.0.conv1")
    plan = graph.plan(np.isin(np.arange(graph.n_groups), inner.groups))
    slimmed = slim(captured, plan, graph=graph, tolerance=1e-9)

    def count(module, kind):
        return sum(node.op == "call_function" and kind in str(node.target) for node in module.graph.nodes)

    for kind, inside in (("conv2d", 2), ("batch_norm", 2), ("add", 1 - left), ("relu", 2 - left)):
        assert count(captured, kind) - count(slimmed, kind) == inside, kind
    inputs = model.example_inputs(3)
    assert difference(run(mask(model, plan), inputs)[0], run(slimmed, inputs)[0]) < 1e-9


def test_a_branch_takes_along_what_only_it_reads():
    """Of a non-local block, query and key are computed for nothing once the values are gone."""
    _, graph = traced("NonLocal")
    values = next(s for s in graph.sets if s.name == "g")
    removed = graph.removed_by(graph.plan(np.isin(np.arange(graph.n_groups), values.groups)))
    theta = next(s for s in graph.sets if s.name == "theta")
    assert removed[theta.groups].all()
    assert not theta.bypassed
    slimmed = slim(captured_of("NonLocal"), graph.plan(removed))
    assert not [n for n in slimmed.graph.nodes if "softmax" in n.name or "bmm" in n.name]


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
