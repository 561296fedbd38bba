import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.data import ImageSource, Preprocess
from graphprune.verification.accuracy import measure_quality

CLASSES = 3


def write(path, matrix, batch="n"):
    """A file that multiplies the four pixels of an image with `matrix`, (4, outputs)."""
    matrix = np.asarray(matrix, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def source(number=100, classes=CLASSES, labels=True):
    """Images of which pixel k is bright, k being the label."""
    label = np.arange(number) % CLASSES
    pixels = np.zeros((number, 2, 2, 1), np.float32)
    pixels.reshape(number, 4)[np.arange(number), label] = 1
    return ImageSource(
        pixels,
        Preprocess((2, 2), (0.0,), (1.0,), 1),
        labels=label if labels else None,
        class_names=[str(i) for i in range(classes)],
    )


RIGHT = np.eye(4, CLASSES)
# Takes class 2 for class 0.
PARTLY = RIGHT[:, [0, 1, 2]] @ np.array([[1, 0, 0], [0, 1, 0], [2, 0, 1.0]])


def test_agreement_and_accuracy_are_counted(tmp_path):
    found = measure_quality(write(tmp_path / "a.onnx", RIGHT), write(tmp_path / "b.onnx", PARTLY), source())
    assert found.images == 100
    assert found.agreement == 0.67
    assert found.accuracy == {"dense": 1.0, "slim": 0.67}
    assert found.distance > 0
    assert measure_quality(tmp_path / "a.onnx", tmp_path / "b.onnx", source(), output_loss="mse").agreement is None


def test_the_same_file_is_at_no_distance(tmp_path):
    path = write(tmp_path / "a.onnx", PARTLY)
    found = measure_quality(path, path, source())
    assert (found.agreement, found.distance) == (1.0, 0.0)


def test_the_distance_is_relative_to_the_spread(tmp_path):
    a, b = write(tmp_path / "a.onnx", RIGHT), write(tmp_path / "b.onnx", 0.9 * RIGHT)
    outputs = RIGHT[source().labels]
    expected = (0.1**2 * (outputs**2).sum()) / ((outputs - outputs.mean(axis=0)) ** 2).sum()  # each class by its own
    assert measure_quality(a, b, source()).distance == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("images", [source(labels=False), source(classes=5)])
def test_accuracy_needs_as_many_classes_as_outputs(tmp_path, images):
    path = write(tmp_path / "a.onnx", RIGHT)
    found = measure_quality(path, path, images)
    assert found.accuracy == {}
    assert found.agreement == 1.0


def test_a_fixed_batch_is_filled_up_and_counted_once(tmp_path):
    a, b = write(tmp_path / "a.onnx", RIGHT, 8), write(tmp_path / "b.onnx", PARTLY, 8)
    free = write(tmp_path / "c.onnx", RIGHT), write(tmp_path / "d.onnx", PARTLY)
    fixed, other = measure_quality(a, b, source(21)), measure_quality(*free, source(21))
    assert fixed.accuracy == other.accuracy
    assert fixed.agreement == other.agreement
    assert fixed.distance == pytest.approx(other.distance)


def test_one_output_is_no_classifier(tmp_path):
    a, b = write(tmp_path / "a.onnx", RIGHT[:, :1]), write(tmp_path / "b.onnx", 2 * RIGHT[:, :1])
    found = measure_quality(a, b, source())
    assert found.agreement is None
    assert found.accuracy == {}
    assert found.to_dict()["distance"] > 0


def test_the_worst_part_is_named_and_what_could_not_be_compared_is_said(tmp_path):
    sizes = np.diag([640.0, 640, 1, 1])
    dense, slim = write(tmp_path / "a.onnx", sizes), write(tmp_path / "b.onnx", sizes * [1, 1, 0, 1])
    found = measure_quality(dense, slim, source(labels=False), output_loss="mse")
    assert found.worst == "'y': 2 of dimension 1"
    assert found.distance > 0.3
    assert found.not_compared == ()
