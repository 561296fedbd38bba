"""ONNX files as torch modules, proven: what the module computes is compared with onnxruntime before anything else."""

import logging
from pathlib import Path

import numpy as np
import onnx
import torch

from graphprune.passes.errors import ModelLoadError, UnsupportedModelError, VerificationError
from graphprune.passes.importer import OnnxModule, import_onnx
from graphprune.runtime.onnx_inputs import InputSpec, input_specs, random_inputs
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, load_proto, one_line, open_session

__all__ = ["TOLERANCE", "cut_at_heads", "heads", "load_onnx", "prove"]

logger = logging.getLogger("graphprune")

#: Largest difference to onnxruntime, relative to an output's scale.
TOLERANCE = 1e-5
#: Sizes that are tried where a file leaves them free: what a network takes is not in the file.
_TRIED = (64, 224, 320, 32, 48, 640)


def load_onnx(path: Path) -> OnnxModule:
    """Return an ONNX file as a torch module, compared with onnxruntime on random inputs.

    Raises:
        ModelLoadError: the file cannot be read or run.
        UnsupportedModelError: an operator has no torch form, or onnxruntime none for its type of numbers.
        VerificationError: the module computes something else than onnxruntime does.
    """
    module = import_onnx(path)
    module.source = path
    try:
        prove(module, path)
    except ModelLoadError as error:
        if module.left_out and "is not a registered function/op" in str(error):
            raise UnsupportedModelError(
                f"{path} ends in {', '.join(module.left_out)}, which onnxruntime does not have, and in it files are "
                "compared and measured: cut the operator off first"
            ) from error
        if (rare := _rare_type(module)) is None:
            raise
        raise UnsupportedModelError(
            f"{path} computes in {rare}, and onnxruntime cannot run it: convert it to float32 first"
        ) from error
    if module.left_out:
        logger.warning(
            "%s: %s at the end has no torch form and is left out of what is read: the module gives what enters it (%s)",
            *(path.name, ", ".join(module.left_out), ", ".join(module.output_names)),
        )
    return module


def heads(module: OnnxModule, path: Path) -> list[str]:
    """What the module gives and the file does not: the values that enter the part that was left out."""
    if not module.left_out:
        return []
    own = {output.name for output in load_proto(path).graph.output}
    return [name for name in module.output_names if name not in own]


def cut_at_heads(module: OnnxModule, path: Path) -> Path | bytes:
    """The file as the module is one: without the part that was left out, if there is one.

    Args:
        module: one read from a file of the same values.
        path: the file.
    """
    if not module.left_out:
        return path
    model = load_proto(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in module.output_names)
    return model.SerializeToString()


def _rare_type(module: OnnxModule) -> str | None:
    """The name of a type of numbers that onnxruntime has few kernels for, if the weights are of one."""
    rare = (p.dtype for p in module.parameters() if p.dtype in (torch.bfloat16, torch.float64))
    return next((str(dtype).removeprefix("torch.") for dtype in rare), None)


def prove(module: OnnxModule, path: Path) -> None:
    """Compare module and file on random inputs, of a size that the network takes where the file leaves it open.

    Raises:
        VerificationError: they differ, by more than `TOLERANCE` of an output's scale.
    """
    session = open_session(path, optimize=False, outputs=heads(module, path))
    specs = input_specs(session, path.name)
    problem = ""
    for size in _TRIED:
        feeds = random_inputs(specs, {spec.name: _filled(spec, size) for spec in specs})
        try:
            expected = session.run(list(module.output_names), feeds)
        except RUNTIME_ERRORS as error:
            problem = one_line(error)
            continue
        _compare(module, feeds, expected, path)
        return
    logger.warning(
        "%s: nothing was compared with onnxruntime when it was read: it takes no input of a size that was tried (%s)",
        path.name,
        problem,
    )


def _filled(spec: InputSpec, size: int) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 2 if at == 0 else size for at, dim in enumerate(spec.dims))


def _compare(module: OnnxModule, feeds: dict[str, np.ndarray], expected: list[np.ndarray], path: Path) -> None:
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    outputs = found if isinstance(found, tuple) else (found,)
    for name, mine, theirs in zip(module.output_names, outputs, expected, strict=True):
        array = mine.numpy()
        if array.shape != theirs.shape:
            raise VerificationError(
                f"{path.name}: output '{name}' read into torch is {array.shape}, onnxruntime gives {theirs.shape}"
            )
        if not theirs.size or not np.issubdtype(theirs.dtype, np.floating):
            continue
        with np.errstate(invalid="ignore"):
            error = float(np.nanmax(np.abs(array - theirs), initial=0.0))
        # Numbers in 0..1 are sigmoids as often as not, and onnxruntime's has an error of its own near 0.
        scale = max(float(np.nanmax(np.abs(theirs), initial=0.0)), 1.0 if _in_unit(theirs) else 1e-12)
        if not error <= TOLERANCE * scale * _LOOSER:
            raise VerificationError(
                f"{path.name}: output '{name}' read into torch differs from onnxruntime's by {error / scale:.1e}"
            )


_LOOSER = 10.0  # random inputs are no images, and deep networks blow rounding up on them


def _in_unit(array: np.ndarray) -> bool:
    return bool((array >= 0).all() and (array <= 1).all())
