"""Which integers stand for what: the scheme of a quantization, and the one that suits the kernels of this machine.

x86-64 without VNNI adds pairs of 8-bit products in 16 bits, which overflow and are cut off (vpmaddubsw). There weights
get 7 bits ("reduce range"), which costs next to no accuracy. Whether the kernels at hand saturate is tried out.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphprune.passes.errors import UsageError
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_session import open_session

__all__ = ["CALIBRATIONS", "OPSET", "Scheme", "saturates", "scheme_of_machine"]


#: Which range of an activation is kept: all of it, all but the outermost, or what loses the least information.
CALIBRATIONS = ("minmax", "percentile", "entropy")


#: Opset from which a scale a channel exists.
OPSET = 13


@dataclass(frozen=True)
class Scheme:
    """Which integers stand for what.

    Attributes:
        activations: "uint8" (with a zero point), or "int8".
        reduce_range: weights have 7 bits instead of 8.
        calibration: one of `CALIBRATIONS`.
    """

    activations: str = "uint8"
    reduce_range: bool = False
    calibration: str = "minmax"

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise UsageError(f"the calibration is one of {', '.join(CALIBRATIONS)}, not {self.calibration!r}")
        if self.activations not in ("uint8", "int8"):
            raise UsageError(f"activations are uint8 or int8, not {self.activations!r}")

    def __str__(self) -> str:
        """One phrase for a table's foot."""
        bits = 7 if self.reduce_range else 8
        return f"{self.activations} activations ({self.calibration}), {bits}-bit weights, one scale a channel"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def scheme_of_machine(calibration: str = "minmax", reduce_range: bool | None = None) -> Scheme:
    """The scheme that suits the kernels of this machine; `reduce_range` overrides what was found out."""
    if machine_facts().architecture == "arm64":
        return Scheme("int8", bool(reduce_range), calibration)
    return Scheme("uint8", saturates() if reduce_range is None else reduce_range, calibration)


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether onnxruntime's int8 convolution cuts off sums of large products here: tried on one that does it."""
    channels, outputs = 64, 32
    weight = np.full((outputs, channels, 1, 1), 127, np.int8)
    literals = {
        "one": np.float32(1),
        "scale": np.float32(1e5),
        "zero": np.uint8(0),
        "weight": weight,
        "scales": np.ones(outputs, np.float32),
        "zeros": np.zeros(outputs, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["dq", "w"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "scale", "zero"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, outputs, 4, 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in literals.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    session = open_session(model.SerializeToString(), name="the trial of int8 kernels")
    (found,) = session.run(None, {"x": np.full((1, channels, 4, 4), 255, np.float32)})
    return bool(float(found.min()) < 0.95 * 255 * 127 * channels)
