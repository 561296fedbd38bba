"""The first value that differs is found, in few runs and without all values in memory."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.verification.bisection import find_first_difference
from graphprune.verification.model_runner import open_runner

FLOAT = TensorProto.FLOAT


def chain(length=200, changed=None, hidden=False):
    """Two branches of `length` additions each, interleaved, that are multiplied; one literal is another."""
    nodes, literals = [], []
    for at in range(length):
        for side in "ab":
            name = f"{side}{at}"
            value = 7.0 if name == changed else 1.0 + at / length
            literals.append(numpy_helper.from_array(np.float32(value), f"{name}.w"))
            nodes.append(helper.make_node("Add", [f"{side}{at - 1}" if at else "x", f"{name}.w"], [name]))
    last = [f"{side}{length - 1}" for side in "ab"]
    if hidden:  # whatever branch a gave, nothing of it is left
        literals.append(numpy_helper.from_array(np.float32(0), "zero"))
        nodes.append(helper.make_node("Mul", [last[0], "zero"], ["gone"]))
        last[0] = "gone"
    nodes.append(helper.make_node("Sub", last, ["y"]))
    infos = [helper.make_tensor_value_info(name, FLOAT, ("n", 3)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], literals)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


class Counting:
    """A runner that notes how many values it was asked for, each time."""

    def __init__(self, model):
        self.inner = open_runner(model)
        self.asked = []

    def value_spans(self):
        return self.inner.value_spans()

    def values(self, inputs, names):
        self.asked.append(len(names))
        return self.inner.values(inputs, names)


def search(one, other, **options):
    runners = Counting(one), Counting(other)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    found = find_first_difference(*runners, [x], 1e-4, 1e-6, **{"same_faults": True, **options})
    return found, runners[0].asked


@pytest.mark.parametrize("place", ["a0", "b0", "a77", "b130", "a199", "b199"])
def test_the_first_is_found_in_a_few_small_runs(place):
    found, asked = search(chain(), chain(changed=place))
    assert found.startswith(f"'{place}'")
    assert len(asked) <= 10
    assert max(asked) <= 4


def test_equal_graphs_have_no_first_difference():
    assert search(chain(), chain())[0] is None


def test_what_differs_without_consequence_is_passed_over():
    found, _ = search(chain(hidden=True), chain(hidden=True, changed="a5"))
    assert found is None


def test_integers_and_truth_values_are_compared():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3] x) => (float[n,3] y) {{
        limit = Constant <value = float {{{0}}}> ()
        mask = Greater(x, limit)
        five = Constant <value = float {{5.0}}> ()
        y = Where(mask, five, x)
    }}"""
    one, other = (onnx.parser.parse_model(text.format(v)).SerializeToString() for v in ("0.0", "0.0001"))
    x = np.array([[0.00005, 1, 2]], np.float32)
    runners = open_runner(one), open_runner(other)
    found = find_first_difference(*runners, [x], 1e-3, 1e-3, same_faults=True)
    assert found.startswith("'mask' differs in 33.33% of its elements")


def test_values_read_by_a_body_are_alive():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3] x) => (float[n,3] y) {
        early = Relu(x)
        yes = Constant <value = bool {1}> ()
        between = Abs(x)
        y = If (yes) <then_branch = t () => (float[n,3] a) { a = Add(early, early) },
                      else_branch = e () => (float[n,3] b) { b = Neg(between) }>
    }"""
    runner = open_runner(onnx.parser.parse_model(text).SerializeToString())
    assert runner.value_spans() == {"early": (0, 3), "yes": (1, 3), "between": (2, 3), "y": (3, 4)}
