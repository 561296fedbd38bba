"""Operators of somebody else's torch library: unknown, and known by a rule that was registered."""

import numpy as np
import pytest
import torch
from torch import Tensor, library, nn
from torch.export import export

import graphprune as gp
from graphprune.passes.channels import patterns
from graphprune.passes.channels.patterns import Binding
from graphprune.passes.fx.operators import find_rule, spelling, translations

X = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),)


@library.custom_op("own::blend", mutates_args=())
def blend(parts: list[Tensor], share: float = 0.5, level: Tensor | None = None) -> Tensor:
    return share * parts[0] + (1 - share) * parts[1] + (0 if level is None else level)


@blend.register_fake
def _(parts, share=0.5, level=None):
    return torch.empty_like(parts[0])


@library.custom_op("own::add_flipped", mutates_args=("out",))
def add_flipped(x: Tensor, out: Tensor) -> None:
    out.add_(x.flip(1))


@add_flipped.register_fake
def _(x, out):
    return None


@library.custom_op("own::regroup", mutates_args=())
def regroup(x: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat(list(x.split(sizes, 1))[::-1], 1)


@regroup.register_fake
def _(x, sizes):
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.level = nn.Parameter(torch.randn(4))


class Blended(Net):
    def forward(self, x):
        return self.last(torch.ops.own.blend([self.first(x), self.other(x)], 0.25, self.level[:, None, None]))


class Written(Net):
    """What comes in by the side is mixed by an operator that gives nothing."""

    def forward(self, x):
        y, out = self.first(x), self.other(x)
        torch.ops.own.add_flipped(y, out)
        return self.last(out)


class Viewed(Net):
    """The same through a view, into zeros."""

    def forward(self, x):
        y = self.first(x)
        out = torch.zeros_like(y)
        torch.ops.own.add_flipped(y, out.view(y.shape))
        return self.last(out)


class Regrouped(Net):
    def forward(self, x):
        return self.last(torch.ops.own.regroup(self.first(x), [1, 3]))


OPERATOR = torch.ops.own.blend.default


def test_names_of_inputs_in_order_and_of_arguments():
    assert spelling(OPERATOR, Binding()) == {}
    assert spelling(OPERATOR, Binding(inputs=("pair",))) == {"parts": "pair"}
    assert spelling(OPERATOR, Binding(inputs=("pair", "bias"))) == {"parts": "pair", "level": "bias"}
    assert spelling(OPERATOR, Binding(inputs=("all...",))) == {"parts": "all...", "level": "all..."}
    named = Binding(inputs=("pair", "bias"), names={"weight": "parts", "ratio": "share"})
    assert spelling(OPERATOR, named) == {"parts": "weight", "share": "ratio", "level": "bias"}
    assert spelling(torch.ops.aten.addmm.default, Binding(names={"bias": "self"})) == {"self": "bias"}


def test_a_rule_is_found_by_overload_first_and_in_place_forms_of_atens_alike():
    assert find_rule(torch.ops.aten.relu_.default)[0].name == "activation, zero at zero"
    assert find_rule(OPERATOR) is None
    with gp.register_rule("blends", patterns.elementwise(), torch=["own::blend", "own::blend.default"]) as made:
        assert find_rule(OPERATOR)[0] is made.rule
    assert find_rule(OPERATOR) is None


def test_from_unknown_to_slim(caplog):
    """Lists, optional tensors and numbers as arguments; the module and the captured graph are cut."""
    net = Blended().eval()
    graph = gp.trace(net, X)
    assert graph.unknown == {"own.blend.default": 1}
    assert graph.n_groups == 0
    with gp.register_rule("blends", patterns.elementwise(), torch="own.blend"):
        graph = gp.trace(net, X)
        assert graph.unknown == {}
        plan = gp.plan(graph, ratio=0.5)
        slim = gp.slim(net, plan, X)
    removed = plan.removed["first.weight"][0]
    assert [(n, d) for n, dims in plan.removed.items() for d in dims if dims[d] != removed] == []
    assert set(plan.removed) == {f"{n}.{p}" for n in ("first", "other") for p in ("weight", "bias")} | {
        "level",
        "last.weight",
    }
    assert type(slim) is Blended
    assert slim.level.shape == (2,)
    assert torch.allclose(slim(*X), gp.mask(net, plan)(*X), atol=1e-6)


def test_arguments_that_repeat_sizes_follow_the_cut():
    def swap(array, op):
        first = op.attrs["parts"][0]
        return np.concatenate([array[:, first:], array[:, :first]], axis=1)

    def resize(op, cut):
        kept = cut.kept("input", 1)
        first = op.attrs["parts"][0]
        return {} if kept is None else {"parts": [int(kept[:first].sum()), int(kept[first:].sum())]}

    net = Regrouped().eval()
    with gp.register_rule(
        "regroup", patterns.moved(swap), torch="own::regroup", names={"parts": "sizes"}, resize=resize
    ):
        graph = gp.trace(net, X)
        removed = np.isin(np.arange(4), [2])
        slim = gp.slim(net, graph.plan(removed), X)
    assert [(m.parameter, m.indices) for m in graph.groups[0].members][-1] == ("last.weight", (3,))
    (node,) = [node for node in slim.graph.nodes if node.target is torch.ops.own.regroup.default]
    assert node.args[1] == [1, 2]


@pytest.mark.parametrize("network", [Written, Viewed])
def test_what_an_operator_writes_to_by_the_side_stays_and_so_does_what_it_reads(network):
    """Silently passed over, its channels would be cut as if they ran straight through."""
    net = network().eval()
    graph = gp.trace(net, X)
    assert graph.unknown == {"own.add_flipped.default": 1}
    assert graph.n_groups == 0
    reasons = {f.reason.split(" at ")[0]: f.parameters for f in graph.frozen}
    assert "first.weight" in reasons["no rule for this operator: own.add_flipped.default"]
    with gp.register_rule("adds", patterns.elementwise(), torch="own::add_flipped"):
        assert gp.trace(net, X).n_groups == 0  # a rule speaks of results alone


def test_what_is_only_read_by_an_operator_that_writes_is_not_computed_for_nothing():
    class Deeper(Net):
        def forward(self, x):
            y = self.last(torch.relu(self.first(x)))
            out = torch.zeros_like(y)
            torch.ops.own.add_flipped(y, out)
            return out

    net = Deeper().eval()
    graph = gp.trace(net, X)
    assert graph.n_groups == 4
    plan = graph.plan(np.isin(np.arange(4), [1]))
    assert plan.removed["first.weight"] == {0: (1,)}
    assert torch.allclose(gp.slim(net, plan, X)(*X), gp.mask(net, plan)(*X), atol=1e-6)


def test_a_form_that_a_rule_does_not_cover_is_unknown():
    binding = Binding(covers=lambda op: op.attrs["share"] == 0.5)
    with gp.register_rule("blends", patterns.elementwise(), torch={"own::blend": binding}):
        graph = gp.trace(Blended().eval(), X)
    assert graph.unknown == {"own.blend.default of this form": 1}
    assert graph.n_groups == 0


def test_translations_are_of_every_form_that_torch_knows():
    def write(*arguments):
        return arguments

    known = ["own::blend", "own::not_there", "nowhere::at_all", "own::regroup.default"]
    with gp.register_rule("blends", patterns.elementwise(), torch=known, to_onnx=write):
        assert translations() == {OPERATOR: write, torch.ops.own.regroup.default: write}
    assert translations() == {}


def test_an_archive_with_an_operator_of_a_rule_is_read_and_another_refused(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(export(Blended().eval(), X), path)
    with pytest.raises(gp.ModelLoadError, match=r"an operator is 'torch\.ops\.own\.blend\.default'"):
        gp.load_model(path)
    other = gp.register_rule("other", patterns.elementwise(), torch="own::blend.other")
    with other, pytest.raises(gp.ModelLoadError, match="an operator is"):
        gp.load_model(path)
    with gp.register_rule("blends", patterns.elementwise(), torch="own::blend"):
        program = gp.load_model(path)
        assert gp.trace(program, X).n_groups == 4
