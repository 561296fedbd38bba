"""The table of rules: complete, unambiguous, and in words that exist."""

import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from graphprune.passes.channels.registry import RuleTable
from graphprune.passes.channels.rules import ATEN, FAMILIES, ONNX, RULES
from graphprune.passes.errors import RuleError


def test_every_rule_is_bound_to_an_operator():
    assert [rule.name for rule in RULES if not rule.aten and not rule.onnx] == []


def test_every_rule_has_a_name_of_its_own_and_a_docstring():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(rule.name == rule.name.lower() for rule in RULES)


def test_every_family_says_what_it_knows():
    assert len(FAMILIES) == len({family.__name__ for family in FAMILIES})
    for family in FAMILIES:
        assert family.RULES
        assert family.__doc__


@pytest.mark.parametrize("vocabulary", ["aten", "onnx"])
def test_no_operator_has_two_rules(vocabulary):
    bound = [kind for rule in RULES for kind in getattr(rule, vocabulary)]
    assert len(set(bound)) == len(bound)


def test_two_rules_for_one_operator_are_an_error():
    table = RuleTable(RULES[:1])
    kind = next(iter(RULES[0].aten))
    with pytest.raises(RuleError, match=f"two rules for {kind}: '{RULES[0].name}' and '{RULES[0].name}'"):
        table.add(RULES[0])


def overloads_of(kind: str) -> list[torch._ops.OpOverload]:
    name, _, overload = kind.partition(".")
    packet = getattr(torch.ops.aten, name, None)
    names = [] if packet is None else [o for o in packet.overloads() if overload in ("", o)]
    return [getattr(packet, o) for o in names]


def test_every_aten_operator_exists():
    assert [kind for kind in ATEN if not overloads_of(kind)] == []
    assert overloads_of("max.other")
    assert not overloads_of("max.nonsense")
    assert not overloads_of("nonsense")


@pytest.fixture(scope="module")
def schemas():
    """The newest definition of every operator that onnx or onnxruntime defines, by its name in the rule table."""
    runtime = {f"{s.domain}.{s.name}": s for s in get_all_operator_schema() if s.domain == "com.microsoft"}
    return {**{s.name: s for s in onnx.defs.get_all_schemas() if s.domain == ""}, **runtime}


def test_every_onnx_operator_exists(schemas):
    assert set(ONNX) <= set(schemas)


def test_sizes_of_operators_that_onnx_does_not_define_are_told_by_one_that_it_does(schemas):
    for kind, (_, binding) in ONNX.items():
        assert (binding.like is not None) == ("." in kind), kind
        if binding.like is not None:
            assert binding.like.kind in schemas
            names = binding.inputs
            assert names[-1].endswith("...") or max(binding.like.inputs) < len(names)


def test_names_of_a_binding_are_arguments_of_the_operator():
    """A rule's argument that is spelled in another way must be spelled as the schema does."""
    for kind, (_, binding) in ATEN.items():
        arguments = {a.name for overload in overloads_of(kind) for a in overload._schema.arguments}
        assert set(binding.names.values()) <= arguments, kind


def test_onnx_bindings_name_every_input_that_must_be_there(schemas):
    for kind, (_, binding) in ONNX.items():
        needed = [i for i in schemas[kind].inputs if i.option.name == "Single"]
        variadic = any(name.endswith("...") for name in binding.inputs)
        if binding.inputs and not variadic:
            assert len(binding.inputs) >= len(needed), kind
        assert set(binding.needs) <= set(binding.inputs), kind


def test_parameters_are_reached_in_the_words_of_the_operator():
    """Every argument that a rule's coupling reads by name exists in its ATen operators."""
    wanted = {"conv2d": {"input", "weight", "bias"}, "batch_norm": {"input", "weight", "running_mean", "running_var"}}
    for kind, names in wanted.items():
        arguments = {a.name for a in getattr(torch.ops.aten, kind).default._schema.arguments}
        assert names <= arguments
