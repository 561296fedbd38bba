"""What a compression has brought: cost, latency and quality of both files, and how it came about."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from graphprune.accuracy import Quality, measure_quality
from graphprune.benchmark import NOT_FASTER, BenchmarkReport, benchmark
from graphprune.data import ImageSource
from graphprune.delivery import Delivery, count_parameters
from graphprune.engine import StudentResult
from graphprune.machine import machine_facts
from graphprune.passes.errors import UsageError
from graphprune.report import collect_metrics
from graphprune.version import __version__

__all__ = ["BenchmarkOptions", "measure"]

logger = logging.getLogger("graphprune")


@dataclass(frozen=True)
class BenchmarkOptions:
    """How the latency of both files is measured at the end.

    Attributes:
        seconds: timed seconds for each file; 0 leaves the measurement out.
        threads: threads of onnxruntime.
        batch: images in one run.
    """

    seconds: float = 2.0
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise UsageError(f"the seconds of the benchmark must be at least 0, not {self.seconds}")


def measure(
    delivery: Delivery,
    result: StudentResult,
    source: ImageSource,
    judged_on: ImageSource | None,
    options: BenchmarkOptions,
) -> dict[str, Any]:
    """Return the metrics of the files that `delivery` has written.

    Args:
        delivery: the dense and the slim file.
        result: the student they came from.
        source: all images of the run.
        judged_on: images for agreement and, if they are labelled, accuracy; by default those never trained on.
        options: of the latency.
    """
    judged_on = judged_on or delivery.engine.held_out
    timing = _latency(delivery, options) if options.seconds else None
    quality = measure_quality(delivery.files["dense"], delivery.files["slim"], judged_on)
    _warn_of_bad_start(quality, judged_on)
    agreement = {} if quality.agreement is None else {"slim": quality.agreement}
    metrics = collect_metrics(delivery.files, benchmark=timing, agreement=agreement, accuracy=quality.accuracy)
    graph, config = delivery.graph, delivery.engine.config
    for entry, model in zip(metrics["models"], (delivery.dense, delivery.slim_model), strict=True):
        # The budget is one of the model's parameters; the files hold fewer, with normalization folded in.
        entry["stored_weights"] = entry["params"]
        entry["params"] = count_parameters(model)
    return {
        **metrics,
        "graphprune": __version__,
        "machine": machine_facts().to_dict(),
        "budget": config.budget(0).limits(),
        "reached": {unit: result.cost[unit] for unit in config.budget(0).limits()},
        "quality": {**quality.to_dict(), "held_out_agreement": result.agreement},
        "verification": {name: found.to_dict() for name, found in delivery.comparisons.items()},
        "channels": [
            {"set": s.name, "dense": len(s.groups), "slim": int((~result.removed[s.groups]).sum())} for s in graph.sets
        ],
        "config": config.to_dict(),
        "torch_threads": torch.get_num_threads(),
        "preprocessing": source.preprocess.to_dict(),
        "data": {
            "images": source.name,
            "number": len(source),
            "skipped": list(source.skipped),
            "held_out": len(delivery.engine.held_out),
            "judged_on": judged_on.name,
        },
        "history": result.history,
    }


def _latency(delivery: Delivery, options: BenchmarkOptions) -> BenchmarkReport:
    report = benchmark(
        delivery.files,
        threads=options.threads,
        batch=options.batch,
        seed=delivery.engine.config.seed,
        min_seconds=options.seconds,
    )
    block = report.machine.conv_block
    if report["slim"].verdict == NOT_FASTER and block > delivery.engine.config.align:
        logger.warning(
            "the slim model is not faster on this machine: onnxruntime works on blocks of %d channels here, and other "
            "widths cost time; try --align %d",
            *(block, block),
        )
    return report


def _warn_of_bad_start(quality: Quality, judged_on: ImageSource) -> None:
    """An accuracy near chance says that the images are not what the model was trained on."""
    classes = len(judged_on.class_names)
    if quality.accuracy and classes > 2 and quality.accuracy["dense"] < 1.5 / classes:
        logger.warning(
            "the dense model is right on %.1f %% of the labelled images: are --mean, --std and --image-size those it "
            "was trained with, and are the classes in its order?",
            100 * quality.accuracy["dense"],
        )
