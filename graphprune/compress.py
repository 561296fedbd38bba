"""From a trained network and a folder of images to a smaller, verified and measured ONNX file.

    images, model -> capture -> channel groups -> rehearsal -> training -> slim -> ONNX -> verification -> measurement

Everything that can fail without training fails before it: the budget, the export of the dense model, the count of its
cost, and a cut of the size that is asked for.
"""

import copy
import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.export import ExportedProgram

from graphprune.checkpoint import load_checkpoint
from graphprune.config import CompressConfig
from graphprune.data import ImageSource
from graphprune.delivery import Delivery
from graphprune.engine import Engine
from graphprune.files import atomic_write_json
from graphprune.inputs import DataOptions, Images, capture_on, read_images
from graphprune.loading import load_model
from graphprune.output_folder import OutputFolder
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import CapturedModule
from graphprune.report import count, render_metrics
from graphprune.results import BenchmarkOptions, measure

__all__ = ["BenchmarkOptions", "CompressResult", "DataOptions", "Reporter", "compress"]

logger = logging.getLogger("graphprune")


class Reporter(Protocol):
    """Told how a compression goes."""

    def stage(self, name: str) -> None:
        """A new part of the work begins."""

    def images(self, done: int, total: int) -> None:
        """So many images are read."""

    def step(self, step: int, total: int, loss: float, cost: dict[str, float], phase: str) -> None:
        """A training step is done; `cost` holds shares of the dense model's."""


@dataclass(frozen=True)
class CompressResult:
    """A compressed model.

    Attributes:
        model: the slim model, in inference mode.
        plan: which channels went.
        metrics: everything measured, as in metrics.json.
        output: the folder with the files, if there is one.
    """

    model: CapturedModule
    plan: PruningPlan
    metrics: dict[str, Any]
    output: Path | None

    def __str__(self) -> str:
        return render_metrics(self.metrics)


def compress(
    model: str | os.PathLike[str] | nn.Module | ExportedProgram,
    images: Images,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    output: str | os.PathLike[str] | None = None,
    config: CompressConfig | None = None,
    data: DataOptions | None = None,
    eval_images: Images | None = None,
    benchmark: BenchmarkOptions | None = None,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
    record: Mapping[str, Any] | None = None,
) -> CompressResult:
    """Compress a trained model to a budget, from unlabelled images alone; the model itself is not touched.

    Args:
        model: a module, an exported program, a captured module, or the path of a .pt2 file.
        images: what to learn from: a path, what `load_images` returned, or an array of network inputs.
        example_inputs: the arguments of one call, to capture the model with; by default a few of the images.
        macs: share of the multiply-accumulates that may be left; goes before the one in `config`.
        params: likewise, of the parameters.
        output: folder for the files; without it they are measured and thrown away, and the model is returned.
        config: settings of the training.
        data: how images are read from files.
        eval_images: more images, labelled or not, to measure the result on; by default those held out of `images`.
        benchmark: how latency is measured.
        resume: go on with the run in `output`.
        force: replace an earlier result in `output`.
        reporter: told how it goes.
        record: facts to keep in metrics.json beside the results, such as the command.

    Raises:
        UsageError: no budget, a setting out of range, or a resumed run with other settings.
        BudgetError: the budget cannot be reached; said before the training.
        DataError: the images are missing, or not what the model takes.
        CaptureError, UnsupportedModelError: the model cannot be captured, or not be written as ONNX.
        OutputExistsError: the folder holds something else.
        VerificationError: masked model, slim model and ONNX file do not compute the same; no result is written.
    """
    settings = _settings(config or CompressConfig(), macs, params)
    folder = OutputFolder(None if output is None else Path(output), resume=resume, force=force)
    clock = _Clock(reporter)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with folder.open() as staging:
        loaded = load_model(Path(model)) if isinstance(model, str | os.PathLike) else model
        with clock("reading images"):
            source, judges = _read(loaded, images, eval_images, data or DataOptions(), reporter)
        with clock("capturing the model"):
            engine = _engine(loaded, source, example_inputs, settings, folder, reporter)
        folder.begin({"preprocessing": source.preprocess.to_dict()})
        _log_model(engine.graph)
        delivery = Delivery(engine, staging)
        with clock("rehearsing"):
            delivery.rehearse()
        with clock("training"), _saying_how_to_go_on(folder):
            (result,) = engine.run(folder.resume)
        with clock("removing channels"):
            slim_model = delivery.cut(result)
        with clock("verifying"):
            delivery.verify()
        with clock("measuring"):
            metrics = measure(delivery, result, source, judges, benchmark or BenchmarkOptions())
        metrics = _finite({**metrics, "record": dict(record or {}), "seconds": clock.seconds})
        atomic_write_json(staging / "metrics.json", metrics)
        folder.commit(staging)
        logger.info("done: %s", ", ".join(f"{unit} {share:.4f} of the dense" for unit, share in result.cost.items()))
    return CompressResult(slim_model, result.plan, metrics, folder.path)


class _Clock:
    """Seconds of each part of the work; says when one begins."""

    def __init__(self, reporter: Reporter | None) -> None:
        self.seconds: dict[str, float] = {}
        self._reporter = reporter

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._reporter is not None:
            self._reporter.stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        logger.debug("%s: %.2f s", name, self.seconds[name])


def _settings(config: CompressConfig, macs: float | None, params: float | None) -> CompressConfig:
    config = dataclasses.replace(
        config, macs=config.macs if macs is None else macs, params=config.params if params is None else params
    )
    if config.n_students != 1:
        raise UsageError("one compression gives one slim model: n_students must be 1")
    if not config.budget(0).limits():
        raise UsageError("no budget given: say how small the model must become with --macs or --params")
    return config


def _read(
    model: nn.Module | ExportedProgram,
    images: Images,
    eval_images: Images | None,
    options: DataOptions,
    reporter: Reporter | None,
) -> tuple[ImageSource, ImageSource | None]:
    progress = None if reporter is None else reporter.images
    source = read_images(images, options, model, progress)
    if eval_images is None:
        return source, None
    seen = source.preprocess
    same = DataOptions(image_size=seen.image_size, channels=seen.channels, mean=seen.mean, std=seen.std)
    return source, read_images(eval_images, same, model, progress)


def _engine(
    model: nn.Module | ExportedProgram,
    source: ImageSource,
    example_inputs: tuple[Any, ...] | None,
    config: CompressConfig,
    folder: OutputFolder,
    reporter: Reporter | None,
) -> Engine:
    """Capture and analyze the model; refuses a budget out of reach, and a checkpoint of another run."""
    teacher = capture_on(model, source, example_inputs)
    graph = analyze(teacher)
    for operator, times in graph.unknown.items():
        logger.warning("operator %s is unknown (used %d times): nothing that it touches is removed", operator, times)
    # A copy, because the engine brings weights into the memory layout that is fastest here; the graph keeps its own.
    engine = Engine(
        copy.deepcopy(teacher),
        graph,
        source,
        config,
        checkpoint=folder.checkpoint,
        progress=None if reporter is None else reporter.step,
    )
    if folder.resume and engine.checkpoint is not None:
        state = load_checkpoint(engine.checkpoint, config, engine.digest)
        engine.batches.load_state_dict(state["images"])  # refuses other images
    return engine


def _log_model(graph: ChannelGraph) -> None:
    every = graph.all_kept()
    logger.info(
        "model: %s MACs, %s parameters; %d groups of coupled channels in %d sets",
        *(count(graph.cost.macs(every)), count(graph.cost.params(every)), graph.n_groups, len(graph.sets)),
    )


@contextmanager
def _saying_how_to_go_on(folder: OutputFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if folder.path is not None:
            logger.warning("stopped; the same command with --resume goes on with it")
        raise


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
