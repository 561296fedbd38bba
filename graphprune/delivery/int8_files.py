"""int8 versions of the slim models of a compression: files beside theirs, rows in the table, facts in the metrics."""

import dataclasses
import logging
from typing import Any

from graphprune.data import ImageSource
from graphprune.delivery.deliver import Delivery
from graphprune.int8.quantize import AUTO, QuantizeOptions, quantize_onnx
from graphprune.latency.target import LatencyTarget
from graphprune.runtime.benchmark import benchmark

__all__ = ["add_timing", "int8_name", "quantize_members"]

logger = logging.getLogger("graphprune")


def int8_name(name: str) -> str:
    """What the int8 version of a slim model is called."""
    return f"{name}-int8"


def quantize_members(delivery: Delivery, images: ImageSource, options: QuantizeOptions) -> list[dict[str, Any]]:
    """Write an int8 file for every slim model, and return what is to be known of each.

    Args:
        delivery: the slim models; the int8 files are added to its own.
        images: those that the training used, so that the held-out ones stay unseen.
        options: how.

    Raises:
        UnsupportedModelError: a model cannot be quantized.
    """
    facts = []
    if options.output_loss == AUTO:  # outputs are to the int8 version what they were to the training
        options = dataclasses.replace(options, output_loss=delivery.engine.config.output_loss)
    for member in delivery.members:
        name = int8_name(member.name)
        file = member.file.with_name(f"{name}.onnx")
        report = quantize_onnx(member.file, file, images, options=options)
        delivery.files[name] = file
        facts.append({"name": name, "of": member.name, **report.to_dict(), "options": options.to_dict()})
    return facts


def add_timing(facts: list[dict[str, Any]], delivery: Delivery, *, seconds: float, target: LatencyTarget) -> None:
    """Measure every int8 file against its float one, and note the speed-up; says so where it is none."""
    for fact in facts:
        files = {name: delivery.files[name] for name in (fact["of"], fact["name"])}
        timing = benchmark(files, **target.to_dict(), shapes=delivery.shapes, min_seconds=seconds)[fact["name"]]
        fact["speedup"] = timing.speedup
        fact["speedup_interval"] = list(timing.speedup_interval)
        fact["verdict"] = timing.verdict
        logger.info("%s.onnx against %s.onnx: %.2fx, %s", fact["name"], fact["of"], timing.speedup, timing.verdict)
