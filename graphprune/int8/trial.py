"""Whether onnxruntime can quantize a model and run the result, found by doing it; and which layers it cannot."""

import logging

from graphprune.data.samples import Arrays
from graphprune.int8.quantizer import Calibrated
from graphprune.passes.errors import ModelLoadError, UnsupportedModelError
from graphprune.verification.model_runner import open_runner

__all__ = ["tried_out"]

logger = logging.getLogger("graphprune")


def tried_out(calibrated: Calibrated, feeds: Arrays) -> Calibrated:
    """Return what can be quantized and run: the same where all of it can, else with layers left that cannot.

    One layer that onnxruntime's quantizer fails on would keep the whole file from being quantized. Where no layer alone
    is to blame, the operators between them are left in float32.

    Args:
        calibrated: the model with all its layers.
        feeds: arrays for its inputs, to run it on.

    Raises:
        UnsupportedModelError: nothing can be quantized and run.
    """
    problem = _problem(calibrated, feeds) if calibrated.layers else None
    if problem is None:
        return calibrated
    logger.info("int8: %s; looking for the layers that this comes from", problem)
    found = {}
    for name in calibrated.layers:
        reason = _problem(calibrated, feeds, only=(name,))
        if reason is not None:
            found[name] = reason
    rest = calibrated.leaving(found)
    for candidate in (rest, rest.leaving({}, layers_alone=True)) if rest.layers else ():
        problem = _problem(candidate, feeds)
        if problem is None:
            if candidate is not rest:
                logger.warning("int8: the operators between the layers stay in float32, with them it cannot be done")
            return candidate
    raise UnsupportedModelError(problem)


def _problem(calibrated: Calibrated, feeds: Arrays, only: tuple[str, ...] | None = None) -> str | None:
    """Why all layers, or some alone, cannot be in int8; None where they can."""
    try:
        open_runner(calibrated.quantized(only=only), label="the int8 model").run(feeds)
    except (UnsupportedModelError, ModelLoadError) as error:
        return str(error)
    return None
