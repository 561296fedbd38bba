"""What each command takes, as a table: one row a kind of file. A test runs every cell on a small file.

python tests/what_goes_in.py > docs/what_goes_in.md
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from safetensors.torch import save_file
from torch import nn

COMMANDS = ("inspect", "slim", "compress", "quantize", "verify", "benchmark")
ARCH = ("--arch", "what_goes_in:Net")
SIDE, IMAGES = 8, 24


class Net(nn.Module):
    """Two convolutions and a linear layer, as a user's own module has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def model_file(dtype: Any = np.float32, plugin: bool = False) -> onnx.ModelProto:
    """`Net` as ONNX; `plugin`: an operator of another runtime stands at its end."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["a"], pads=[1] * 4, name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second.weight", "second.bias"], ["c"], pads=[1] * 4, name="second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "head.weight", "head.bias"], ["g"], transB=1, name="head"),
        helper.make_node("Selection" if plugin else "Identity", ["g"], ["y"], domain="other.runtime" if plugin else ""),
    ]
    weights = [numpy_helper.from_array(w.numpy().astype(dtype), name) for name, w in net().state_dict().items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", kind, ["n", 4])],
        weights,
    )
    opsets = {"": 22 if kind == TensorProto.BFLOAT16 else 17, **({"other.runtime": 1} if plugin else {})}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*held) for held in opsets.items()], ir_version=10
    )


def pictures(count: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, SIDE, SIDE)).astype(np.float32)


class _Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"x": pictures(4)}]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def _written(path: Path, model: onnx.ModelProto) -> tuple[str, ...]:
    onnx.save(model, path)
    return (str(path),)


def _quantized(how: QuantFormat) -> Callable[[Path], tuple[str, ...]]:
    def make(path: Path) -> tuple[str, ...]:
        source = path.with_suffix(".float.onnx")
        onnx.save(model_file(), source)
        quantize_static(source, path, _Calibration(), quant_format=how, per_channel=True, reduce_range=True)
        return (str(path),)

    return make


def _optimized(path: Path) -> tuple[str, ...]:
    source = path.with_suffix(".float.onnx")
    onnx.save(model_file(), source)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return (str(path),)


def _outside(path: Path) -> tuple[str, ...]:
    onnx.save_model(model_file(), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return (str(path),)


def _program(path: Path) -> tuple[str, ...]:
    batch = torch.export.Dim("n", min=1, max=512)
    x = torch.from_numpy(pictures(2))
    torch.export.save(torch.export.export(net(), (x,), dynamic_shapes=({0: batch},)), path)
    return (str(path),)


def _safetensors(path: Path) -> tuple[str, ...]:
    save_file(net().state_dict(), path)
    return (str(path), *ARCH)


def _state_dict(path: Path) -> tuple[str, ...]:
    torch.save(net().state_dict(), path)
    return (str(path), *ARCH)


def _lightning(path: Path) -> tuple[str, ...]:
    weights = {f"model.{name}": weight for name, weight in net().state_dict().items()}
    held = {"state_dict": weights, "epoch": 3, "global_step": 70, "pytorch-lightning_version": "2.5.0"}
    torch.save({**held, "optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {"lr": 0.1}}, path)
    return (str(path), *ARCH)


def _pickled(path: Path) -> tuple[str, ...]:
    torch.save(net(), path)
    return (str(path), "--trust-pickle")


def _torchscript(path: Path) -> tuple[str, ...]:
    torch.jit.trace(net(), torch.from_numpy(pictures(2))).save(str(path))
    return (str(path),)


def _name(path: Path) -> tuple[str, ...]:
    return ("what_goes_in:Net",)


@dataclass(frozen=True)
class Refusal:
    """A command does not take a kind of file.

    Attributes:
        code: the exit code.
        said: part of the one line that says so.
        why: the same for the page, and what to do.
    """

    code: int
    said: str
    why: str


NO_ONNX = Refusal(1, "not an .onnx file", "ONNX files only: `compress` writes one, and its int8 form with `--quantize`")
NOT_MEASURED = Refusal(1, "only .onnx files can be benchmarked", "ONNX files only: `compress` measures what it writes")
HALF = Refusal(3, "float16", "convert it to float32 first")
BRAIN = Refusal(3, "bfloat16", "convert it to float32 first")
NO_KERNELS = Refusal(1, "onnxruntime cannot load it", "onnxruntime has no kernels for it")
QUANTIZED = Refusal(3, "is quantized", "take the float32 file that it was made from")
WRITTEN_BY_QUANTIZER = Refusal(3, "no torch form of com.microsoft", "take the float32 file that it was made from")
OPTIMIZED = Refusal(3, "com.microsoft", "take the file that it was made from")
UNKNOWN = Refusal(3, "other.runtime", "cut the operator off first")
NOT_RUN = Refusal(1, "other.runtime", "onnxruntime cannot run it; `slim` compares what goes into the operator")
SCRIPT = Refusal(1, "TorchScript", "save the model with torch.export.save, or write the archive as ONNX")
NO_FILE = Refusal(1, "no such file", "save it with torch.export.save; its weights alone take `--arch`")

Cell = Refusal | None
TAKEN: tuple[Cell, ...] = (None,) * 6
OF_TORCH: tuple[Cell, ...] = (None, NO_ONNX, None, NO_ONNX, None, NOT_MEASURED)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what the page calls it.
        file: name of the small one that the test makes.
        make: writes that; the words for the command line, the file first.
        cells: what each of the commands does with it; None: it takes it.
    """

    name: str
    file: str
    make: Callable[[Path], tuple[str, ...]]
    cells: Sequence[Cell]


KINDS = (
    Kind(".onnx, float32", "float32.onnx", lambda path: _written(path, model_file()), TAKEN),
    Kind(".onnx, weights in another file", "outside.onnx", _outside, TAKEN),
    Kind(
        ".onnx, float16",
        "float16.onnx",
        lambda path: _written(path, model_file(np.float16)),
        (None, None, HALF, HALF, None, None),
    ),
    Kind(
        ".onnx, bfloat16",
        "bfloat16.onnx",
        lambda path: _written(path, model_file(ml_dtypes.bfloat16)),
        (None, None, BRAIN, BRAIN, NO_KERNELS, NO_KERNELS),
    ),
    Kind(
        ".onnx, int8 as QDQ",
        "qdq.onnx",
        _quantized(QuantFormat.QDQ),
        (None, None, QUANTIZED, QUANTIZED, None, None),
    ),
    Kind(
        ".onnx, int8 as QLinear operators",
        "qlinear.onnx",
        _quantized(QuantFormat.QOperator),
        (None, None, WRITTEN_BY_QUANTIZER, QUANTIZED, None, None),
    ),
    Kind(
        ".onnx, optimized by onnxruntime",
        "optimized.onnx",
        _optimized,
        (None, None, OPTIMIZED, OPTIMIZED, None, None),
    ),
    Kind(
        ".onnx, ends in a plugin",
        "plugin.onnx",
        lambda path: _written(path, model_file(plugin=True)),
        (None, None, UNKNOWN, UNKNOWN, NOT_RUN, NOT_RUN),
    ),
    Kind(".pt2 (torch.export)", "program.pt2", _program, OF_TORCH),
    Kind(".safetensors, `--arch`", "weights.safetensors", _safetensors, OF_TORCH),
    Kind(".pt, .pth, .bin: state dict, `--arch`", "weights.pt", _state_dict, OF_TORCH),
    Kind(".ckpt of Lightning, `--arch`", "last.ckpt", _lightning, OF_TORCH),
    Kind(".pt: pickled module, `--trust-pickle`", "module.pt", _pickled, OF_TORCH),
    Kind("TorchScript archive", "script.pt", _torchscript, (SCRIPT, NO_ONNX, SCRIPT, NO_ONNX, SCRIPT, NOT_MEASURED)),
    Kind("`module:function` without a file", "none", _name, (NO_FILE, NO_ONNX, NO_FILE, NO_ONNX, NO_FILE, NO_FILE)),
)


def markdown() -> str:
    """The page of the documentation."""
    refusals = list(dict.fromkeys(cell for kind in KINDS for cell in kind.cells if cell is not None))
    reasons = list(dict.fromkeys(refusal.why for refusal in refusals))
    lines = [
        "# What goes in",
        "",
        "Which command takes which kind of file. Made by `python tests/what_goes_in.py`; a test runs every cell on a",
        "small file. What is refused is refused in one line, with the exit code in brackets.",
        "",
        f"| | {' | '.join(f'`{command}`' for command in COMMANDS)} |",
        "|---|" + "---|" * len(COMMANDS),
    ]
    for kind in KINDS:
        cells = ["yes" if cell is None else f"no ({cell.code}) [{reasons.index(cell.why) + 1}]" for cell in kind.cells]
        lines.append(f"| {kind.name} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {why[0].upper()}{why[1:]}." for number, why in enumerate(reasons, 1))]
    lines += [
        "",
        "`--arch` names the code that builds the network: `--arch mymodels:net`. `--trust-pickle` lets a file run code",
        "while it is read. Models of Keras, TensorFlow, Paddle and JAX go in as the ONNX files of their converters.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
