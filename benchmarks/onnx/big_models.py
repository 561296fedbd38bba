"""The files of `big.py`: ResNet50 as torchvision has it, and one beyond the 2 GB that a protobuf message can hold."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

#: Channels of the convolutions, units of the layers behind them.
_WIDTH, _UNITS = 2048, (16384, 8192, 8192)
_CONVOLUTIONS = 10


def make(folder: Path, seed: int) -> None:
    """Write the files that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "resnet50.onnx").exists():
        resnet(folder, seed)
    if not (folder / "resnet50-half.onnx").exists():
        half_dead(folder / "resnet50.onnx", folder / "resnet50-half.onnx", seed)
    if not (folder / "wide-half.onnx").exists():
        path = folder / "wide-half.onnx"
        with Path(f"{path}.data").open("wb") as data:
            Wide(path, data, seed).write()


def resnet(folder: Path, seed: int) -> None:
    """Torchvision's ResNet50 with calibrated random weights, exported by the dynamo exporter."""
    from exports import export
    from process import Stages

    export(Stages({}), argparse.Namespace(suite="torchvision", network="resnet50", seed=seed, folder=folder))
    (folder / "dynamo" / "torchvision" / "resnet50.onnx").rename(folder / "resnet50.onnx")


def half_dead(source: Path, target: Path, seed: int) -> None:
    """A copy with half of the channels of each group at zero."""
    from roundtrip import half

    from graphprune.passes.onnx.analyze import trace_onnx
    from graphprune.passes.onnx.cut import mask_groups
    from graphprune.passes.onnx.model import load_model

    graph = trace_onnx(load_model(source))
    mask_groups(graph, half(graph, seed))
    ir.save(graph.front_end.model, target)


class Wide:
    """Convolutions with batch norms, then dense layers: 2.5 GB of which half of the channels of each layer are zero.

    The weights are drawn and written one after another, so that making the file needs memory for one of them.
    """

    def __init__(self, path: Path, data: BinaryIO, seed: int) -> None:
        self.path = path
        self.data = data
        self.rng = np.random.default_rng(seed)
        self.tensors: list[TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        """Write the model and its data."""
        x, width = "x", 256
        for number in range(_CONVOLUTIONS + 1):
            x = self.convolution(x, number, width, _WIDTH)
            width = _WIDTH
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        for number, units in enumerate(_UNITS):
            x = self.dense(x, number, width, units)
            width = units
        weight = self.weight("head.weight", (1000, width), width)
        self.nodes.append(
            helper.make_node("Gemm", [x, weight, self.store("head.bias", self.vector(1000))], ["y"], transB=1)
        )
        graph = helper.make_graph(
            self.nodes,
            "wide",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 256, 14, 14])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1000])],
            self.tensors,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), self.path)

    def convolution(self, x: str, number: int, width: int, channels: int) -> str:
        """Conv without bias, batch norm, Relu; the first one halves the image."""
        name, dead = f"conv{number}", self.rng.permutation(channels)[: channels // 2]
        weight = self.weight(f"{name}.weight", (channels, width, 3, 3), width * 9, dead)
        x = self.node("Conv", [x, weight], pads=[1] * 4, strides=[1 if number else 2] * 2)
        vectors = []
        for part, spread in (("scale", 0.1), ("bias", 0.1), ("mean", 0.1), ("var", 0.0)):
            vector = self.vector(channels, spread, 1.0 if part in ("scale", "var") else 0.0)
            if part != "var":
                vector[dead] = 0
            vectors.append(self.store(f"{name}.{part}", vector))
        return self.node("Relu", [self.node("BatchNormalization", [x, *vectors])])

    def dense(self, x: str, number: int, width: int, units: int) -> str:
        """Gemm with a transposed weight, or MatMul and Add as exporters write it; Relu."""
        name, dead = f"dense{number}", self.rng.permutation(units)[: units // 2]
        bias = self.vector(units)
        bias[dead] = 0
        if number % 2 == 0:
            weight = self.weight(f"{name}.weight", (units, width), width, dead)
            x = self.node("Gemm", [x, weight, self.store(f"{name}.bias", bias)], transB=1)
        else:
            weight = self.weight(f"{name}.weight", (width, units), width, (slice(None), dead))
            x = self.node("Add", [self.node("MatMul", [x, weight]), self.store(f"{name}.bias", bias)])
        return self.node("Relu", [x])

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node; the name of its result."""
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def vector(self, size: int, spread: float = 0.1, middle: float = 0.0) -> np.ndarray:
        """Random numbers around `middle`."""
        return (middle + spread * self.rng.standard_normal(size)).astype(np.float32)

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int, dead: Any = None) -> str:
        """Random numbers that keep the size of what passes through, some of them zero."""
        numbers = self.rng.standard_normal(shape, dtype=np.float32)
        numbers *= np.float32(np.sqrt(4 / fan_in))  # half of what is read is zero
        if dead is not None:
            numbers[dead] = 0
        return self.store(name, numbers)

    def store(self, name: str, numbers: np.ndarray) -> str:
        """Write numbers where page boundaries are, and note where."""
        self.data.seek(-self.data.tell() % 4096, 1)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=numbers.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": Path(self.data.name).name, "offset": self.data.tell(), "length": numbers.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        numbers.tofile(self.data)
        self.tensors.append(tensor)
        return name
