"""What a compression has brought: cost, latency and quality of both files, and how it came about."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch

from graphprune.data import Source
from graphprune.delivery.deliver import Delivery, Member, count_parameters
from graphprune.delivery.int8_files import add_timing
from graphprune.formats.sparse_storage import is_smaller_sparse
from graphprune.latency.stopwatch import TOLERANCE
from graphprune.latency.target import LatencyTarget
from graphprune.passes.errors import UsageError
from graphprune.report.summary import collect_metrics
from graphprune.runtime.benchmark import NOT_FASTER, BenchmarkReport, benchmark
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_session import CPU, require_provider
from graphprune.verification.accuracy import Quality, measure_quality
from graphprune.verification.own_metric import Metric
from graphprune.version import __version__

__all__ = ["BenchmarkOptions", "measure", "missed", "try_metric"]

logger = logging.getLogger("graphprune")

_ROUNDING = 1e-6
_LONGER = 3.0  # times, where a budget seems to be missed
_FEW = 8  # images


@dataclass(frozen=True)
class BenchmarkOptions:
    """What latency means: how the files are run, for a budget in latency and for the measurement at the end.

    Attributes:
        seconds: timed seconds for each file at the end; 0 leaves that measurement out.
        threads: threads of onnxruntime.
        batch: images in one run.
        provider: execution provider of onnxruntime.
    """

    seconds: float = 2.0
    threads: int = 1
    batch: int = 1
    provider: str = CPU

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise UsageError(f"the seconds of the benchmark must be at least 0, not {self.seconds}")
        require_provider(self.provider)  # said now, not after the training

    @property
    def target(self) -> LatencyTarget:
        """What a budget in latency is one of."""
        return LatencyTarget(threads=self.threads, batch=self.batch, provider=self.provider)


def measure(
    delivery: Delivery,
    source: Source,
    judged_on: Source | None,
    options: BenchmarkOptions,
    int8: list[dict[str, Any]] | None = None,
    metric: Metric | None = None,
) -> dict[str, Any]:
    """Return the metrics of the files that `delivery` has written.

    Args:
        delivery: the dense file and those of the slim models.
        source: all images of the run.
        judged_on: images for agreement and, if they are labelled, accuracy; by default those never trained on.
        options: of the latency.
        int8: what `quantize_members` returned.
        metric: the user's own measure of outputs.
    """
    judged_on = judged_on or delivery.engine.held_out
    timing = _latency(delivery, options) if options.seconds else None
    if int8 and options.seconds:
        add_timing(int8, delivery, seconds=options.seconds, target=options.target)
    candidates = {name: file for name, file in delivery.files.items() if name != "dense"}
    output_loss = delivery.engine.config.output_loss
    qualities = {
        name: measure_quality(delivery.files["dense"], file, judged_on, output_loss=output_loss, metric=metric)
        for name, file in candidates.items()
    }
    first = next(iter(qualities.values()))
    _warn_of_bad_start(first, judged_on)
    agreement = {name: quality.agreement for name, quality in qualities.items() if quality.agreement is not None}
    accuracy = {name: quality.accuracy["slim"] for name, quality in qualities.items() if quality.accuracy}
    if first.accuracy:
        accuracy["dense"] = first.accuracy["dense"]
    distance = {name: quality.distance for name, quality in qualities.items() if quality.agreement is None}
    paths = {name: quality.same_paths for name, quality in qualities.items() if quality.same_paths is not None}
    metrics = collect_metrics(
        delivery.files,
        benchmark=timing,
        agreement=agreement,
        accuracy=accuracy,
        distance=distance,
        paths=paths,
        own={name: quality.metric for name, quality in qualities.items() if quality.metric is not None},
        shapes=delivery.shapes,
    )
    models = {"dense": delivery.dense, **{member.name: member.model for member in delivery.members}}
    models |= {fact["name"]: models[fact["of"]] for fact in int8 or ()}
    for entry in metrics["models"]:
        # The budget is one of the model's parameters; the files hold fewer, with normalization folded in.
        entry["stored_weights"] = entry["params"]
        entry["params"] = count_parameters(models[entry["name"]]) - _not_stored(delivery, entry["name"])
    params = {entry["name"]: entry["params"] for entry in metrics["models"]}
    members = [
        _about(member, qualities[member.name], timing, params[member.name] / params["dense"])
        for member in delivery.members
    ]
    return {
        **metrics,
        "graphprune": __version__,
        "machine": machine_facts().to_dict(),
        **({key: value for key, value in members[0].items() if key != "name"} if len(members) == 1 else {}),
        **({"latency": delivery.stopwatch.to_dict()} if delivery.stopwatch is not None else {}),
        "int8": int8 or [],
        **({} if delivery.engine.sparsity is None else {"sparse_weights": _sparse_weights(delivery)}),
        "members": members if len(members) > 1 else [],
        "verification": {name: found.to_dict() for name, found in delivery.comparisons.items()},
        "config": {**delivery.engine.config.to_dict(), "lr": delivery.engine.config.peak_lr},
        "torch_threads": torch.get_num_threads(),
        "trained_on": str(delivery.engine.device),
        "preprocessing": None if source.preprocess is None else source.preprocess.to_dict(),
        "data": {
            "images": source.name,
            "number": len(source),
            "skipped": list(source.skipped),
            "held_out": len(delivery.engine.held_out),
            "judged_on": judged_on.name,
        },
    }


def try_metric(delivery: Delivery, judged_on: Source | None, metric: Metric) -> None:
    """Ask the user's own measure about the dense file and itself on a few images, before any training.

    Raises:
        UsageError: it fails.
    """
    few = (judged_on or delivery.engine.held_out).sample(_FEW, 0)
    measure_quality(delivery.files["dense"], delivery.files["dense"], few, metric=metric)


def _not_stored(delivery: Delivery, name: str) -> int:
    """Single weights of a model that its file leaves out because they are zero."""
    sparsity, stored = delivery.engine.sparsity, delivery.stored_sparse.get(name)
    member = next((member for member in delivery.members if member.name == name), None)
    if sparsity is None or stored is None or member is None or not stored.sparse:
        return 0
    layers = sparsity.describe(member.model.state_dict()).values()
    return sum(at["weights"] - at["left"] for at in layers if is_smaller_sparse(at["left"], at["weights"]))


def _sparse_weights(delivery: Delivery) -> dict[str, Any]:
    """What is left of the linear layers' weights, and how the files store them, by member."""
    sparsity = delivery.engine.sparsity
    assert sparsity is not None
    return {
        member.name: {
            "layers": sparsity.describe(member.model.state_dict()),
            "stored": delivery.stored_sparse[member.name].to_dict(),
        }
        for member in delivery.members
    }


def missed(metrics: dict[str, Any]) -> str:
    """What was asked for and not reached, within the tolerance of a measurement; "" if nothing is."""
    found = []
    for member in metrics["members"] or [metrics]:
        name, asked, reached = member.get("name", "slim"), member["budget"], member["reached"]
        if "speedup" in asked and reached["speedup"] < asked["speedup"] * (1 - TOLERANCE):
            found.append(
                f"{name}.onnx is {reached['speedup']:.2f} times as fast as the dense file, not "
                f"{asked['speedup']:g} times"
            )
        for unit, noun in (("macs", "multiply-accumulates"), ("params", "parameters")):
            if unit in asked and reached[unit] > asked[unit] * (1 + _ROUNDING):
                found.append(f"{name}.onnx has {reached[unit]:.4g} of the {noun}, not {asked[unit]:g}")
        if "latency_ms" in asked and reached["latency_ms"] > asked["latency_ms"] * (1 + TOLERANCE):
            found.append(f"{name}.onnx takes {reached['latency_ms']:.3g} ms, not {asked['latency_ms']:g} ms")
    return "; ".join(found)


def _about(member: Member, quality: Quality, timing: BenchmarkReport | None, params: float) -> dict[str, Any]:
    """What a slim model has reached, and how; `params` is the share of the parameters that its file holds."""
    result, delivery = member.result, member.delivery
    limits = delivery.engine.config.budget(result.number).limits()
    # Weights that were to be stored sparse may not be: what the file holds counts, not what was planned.
    reached = {**result.cost, "params": params}
    if timing is not None:
        reached |= {"speedup": timing[member.name].speedup, "latency_ms": timing[member.name].median_ms}
    return {
        "name": member.name,
        "student": result.number,
        "budget": limits,
        "reached": {unit: reached.get(unit) for unit in limits},
        "quality": {**quality.to_dict(), "held_out_agreement": result.agreement},
        "channels": [
            {"set": s.name, "dense": len(s.groups), "slim": int((~result.removed[s.groups]).sum())}
            for s in delivery.graph.sets
        ],
        "history": result.history,
        **({} if result.start is None else {"start": {**vars(result.start), "is_delivered": result.is_start}}),
    }


def _latency(delivery: Delivery, options: BenchmarkOptions) -> BenchmarkReport:
    """Latencies of all files; where a budget is missed, measured again for longer before it is said."""
    report = _timed(delivery, options)
    if all(_is_reached(member, report) for member in delivery.members):
        return report
    return _timed(delivery, dataclasses.replace(options, seconds=_LONGER * options.seconds))


def _is_reached(member: Member, report: BenchmarkReport) -> bool:
    budget, timing = member.delivery.engine.config.budget(member.result.number), report[member.name]
    quick = budget.speedup is None or timing.speedup >= budget.speedup * (1 - TOLERANCE)
    return quick and (budget.latency_ms is None or timing.median_ms <= budget.latency_ms * (1 + TOLERANCE))


def _timed(delivery: Delivery, options: BenchmarkOptions) -> BenchmarkReport:
    report = benchmark(
        delivery.files,
        shapes=delivery.shapes,
        threads=options.threads,
        batch=options.batch,
        provider=options.provider,
        seed=delivery.engine.config.seed,
        min_seconds=options.seconds,
    )
    block = report.machine.conv_block
    for member in delivery.members:
        if report[member.name].verdict == NOT_FASTER and delivery.stopwatch is None:
            logger.warning(
                "%s is not faster on this machine: onnxruntime works on blocks of %d channels here, and other widths "
                'cost time; try `speedup`, or `align="auto"`',
                *(member.file.name, block),
            )
    return report


def _warn_of_bad_start(quality: Quality, judged_on: Source) -> None:
    """An accuracy near chance says that the images are not what the model was trained on."""
    classes = len(judged_on.class_names)
    if quality.accuracy and classes > 2 and quality.accuracy["dense"] < 1.5 / classes:
        logger.warning(
            "the dense model is right on %.1f %% of the labelled images: are `mean`, `std` and `image_size` those it "
            "was trained with, and are the classes in its order?",
            100 * quality.accuracy["dense"],
        )
