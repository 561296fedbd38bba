"""int8 versions of the slim models of a compression: files beside theirs, rows in the table, facts in the metrics."""

import dataclasses
import logging
from typing import Any

from graphprune.data import Source
from graphprune.delivery.deliver import Delivery
from graphprune.int8.quantize import AUTO, QuantizeOptions, quantize_onnx
from graphprune.latency.target import LatencyTarget
from graphprune.passes.errors import GraphPruneError
from graphprune.runtime.benchmark import benchmark
from graphprune.runtime.onnx_session import one_line

__all__ = ["add_timing", "int8_name", "quantize_members", "said"]

logger = logging.getLogger("graphprune")


def int8_name(name: str) -> str:
    """What the int8 version of a slim model is called."""
    return f"{name}-int8"


def said(error: Exception) -> str:
    """What went wrong, in one line; of what is no error of ours, the kind as well."""
    return one_line(error) if isinstance(error, GraphPruneError) else f"{type(error).__name__}: {one_line(error)}"


def quantize_members(
    delivery: Delivery, images: Source, options: QuantizeOptions
) -> tuple[list[dict[str, Any]], dict[str, Exception]]:
    """Write an int8 file for every slim model; return what is to be known of each, and what kept others from it.

    Whatever goes wrong here comes after the training, and must not take its result away.

    Args:
        delivery: the slim models; the int8 files are added to its own.
        images: those that the training used, so that the held-out ones stay unseen.
        options: how.
    """
    facts: list[dict[str, Any]] = []
    failed: dict[str, Exception] = {}
    if options.output_loss == AUTO:  # outputs are to the int8 version what they were to the training
        options = dataclasses.replace(options, output_loss=delivery.engine.config.output_loss)
    for member in delivery.members:
        name = int8_name(member.name)
        file = member.file.with_name(f"{name}.onnx")
        try:
            report = quantize_onnx(member.file, file, images, options=options)
        except Exception as error:  # whatever it is: the slim model is delivered, and the error told
            file.unlink(missing_ok=True)
            failed[member.name] = error
            continue
        delivery.files[name] = file
        facts.append({"name": name, "of": member.name, **report.to_dict(), "options": options.to_dict()})
    return facts, failed


def add_timing(facts: list[dict[str, Any]], delivery: Delivery, *, seconds: float, target: LatencyTarget) -> None:
    """Measure every int8 file against its float one, and note the speed-up; says so where it is none."""
    for fact in facts:
        files = {name: delivery.files[name] for name in (fact["of"], fact["name"])}
        timing = benchmark(files, **target.to_dict(), shapes=delivery.shapes, min_seconds=seconds)[fact["name"]]
        fact["speedup"] = timing.speedup
        fact["speedup_interval"] = list(timing.speedup_interval)
        fact["verdict"] = timing.verdict
        logger.info("%s.onnx against %s.onnx: %.2fx, %s", fact["name"], fact["of"], timing.speedup, timing.verdict)
