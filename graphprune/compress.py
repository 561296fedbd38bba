"""From a trained network and a folder of images to a smaller, verified and measured ONNX file.

    images, model -> capture -> channel groups -> rehearsal -> training -> slim -> ONNX -> verification -> measurement
                                                            or, with no epochs: closed-form reconstruction

Everything that can fail without training fails before it: the budget, the export of the dense model, the count of its
cost, and a cut of the size that is asked for.
"""

import copy
import dataclasses
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.export import ExportedProgram

from graphprune.allocation import LATENCY, SEARCHES
from graphprune.config import RECONSTRUCTED, CompressConfig
from graphprune.data import ImageSource, Source
from graphprune.delivery.closed_form import ClosedForm
from graphprune.delivery.deliver import Delivery, member_names
from graphprune.delivery.int8_files import int8_name, quantize_members, said
from graphprune.delivery.output_folder import CHECKPOINT, OutputFolder
from graphprune.delivery.results import BenchmarkOptions, measure, missed, try_metric
from graphprune.delivery.untrained import Untrained
from graphprune.formats.files import atomic_write_json
from graphprune.formats.loading import load_model
from graphprune.inputs import DataOptions, Images, capture_on, read_images
from graphprune.int8.quantize import QuantizeOptions
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import DataError, MissedBudgetError, UnfinishedError, UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.captured import CapturedModule
from graphprune.report.summary import count, render_metrics
from graphprune.runtime.torch_mode import torch_threads
from graphprune.search import SearchOptions, Trial
from graphprune.training.checkpoint import load_checkpoint
from graphprune.training.engine import Engine
from graphprune.training.processes import Processes
from graphprune.training.run_records import Observer, StudentResult
from graphprune.verification.own_metric import Metric

__all__ = ["BenchmarkOptions", "CompressResult", "DataOptions", "Reporter", "compress"]

logger = logging.getLogger("graphprune")


class Reporter(Protocol):
    """Told how a compression goes."""

    def stage(self, name: str) -> None:
        """A new part of the work begins."""

    def images(self, done: int, total: int) -> None:
        """So many images are read."""

    def part(self, done: int, total: int) -> None:
        """So many of the batches are looked at, or of the layers fitted, where there is no training."""

    def evaluation(self, done: int, total: int, best: Trial) -> None:
        """A policy that searches has tried an allocation; `best` is what the best one so far is worth."""

    def step(self, step: int, total: int, loss: float, cost: dict[str, float], phase: str) -> None:
        """A training step is done; `cost` holds shares of the dense model's."""


@dataclass(frozen=True)
class CompressResult:
    """A compressed model.

    Attributes:
        model: the slim model, in inference mode; of a family, that of the first budget.
        plan: which channels went from it.
        metrics: everything measured, as in metrics.json.
        output: the folder with the files, if there is one.
        family: all slim models by name ("slim" if there is one, "slim-macs0.5" and so on if each has its budget).
    """

    model: CapturedModule
    plan: PruningPlan
    metrics: dict[str, Any]
    output: Path | None
    family: Mapping[str, CapturedModule]

    def __str__(self) -> str:
        return render_metrics(self.metrics)


def compress(
    model: str | os.PathLike[str] | nn.Module | ExportedProgram,
    images: Images,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    macs: float | Sequence[float] | None = None,
    params: float | Sequence[float] | None = None,
    speedup: float | Sequence[float] | None = None,
    latency_ms: float | Sequence[float] | None = None,
    output: str | os.PathLike[str] | None = None,
    config: CompressConfig | None = None,
    data: DataOptions | None = None,
    eval_images: Images | None = None,
    benchmark: BenchmarkOptions | None = None,
    quantize: QuantizeOptions | None = None,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
    observer: Observer | None = None,
    metric: Metric | None = None,
    record: Mapping[str, Any] | None = None,
) -> CompressResult:
    """Compress a trained model to a budget, from unlabelled images alone; the model itself is not touched.

    Args:
        model: a module, an exported program, a captured module, or the path of a .pt2 file.
        images: what to learn from: a path, what `load_images` returned, or an array of network inputs; for a model of
            several inputs, or of one that is no image, arrays by input, as a mapping or the path of an .npz file.
        example_inputs: the arguments of one call, to capture the model with; by default a few of the images.
        macs: share of the multiply-accumulates that may be left; goes before the one in `config`. Several make a
            family: as many students learn from one teacher and from each other, and each is delivered.
        params: likewise, of the parameters; and so on for what follows.
        speedup: how many times faster than the dense file the slim one must be in onnxruntime on this machine.
        latency_ms: milliseconds that one run of it may take.
        output: folder for the files; without it they are measured and thrown away, and the model is returned.
        config: settings of the training.
        data: how images are read from files.
        eval_images: more images, labelled or not, to measure the result on; by default those held out of `images`.
        benchmark: how latency is measured.
        quantize: also write an int8 version of every slim model, calibrated on the images; None writes none.
        resume: go on with the run in `output`.
        force: replace an earlier result in `output`.
        reporter: told how it goes.
        observer: adds to each measurement during the training, for the record alone.
        metric: your own measure of what is delivered: given the outputs of the dense file and of a slim one for a
            batch, as arrays by name, a number, more is better. Its mean is reported; nothing is learned from it.
        record: facts to keep in metrics.json beside the results, such as the command.

    Raises:
        UsageError: no budget, a setting out of range, a resumed run with other settings, or a `metric` that fails.
        BudgetError: the budget cannot be reached; said before the training.
        MissedBudgetError: the file that was made, and is delivered all the same, is slower than was asked for by more
            than 3 %; the error holds the result.
        DataError: the images are missing, or not what the model takes.
        CaptureError, UnsupportedModelError: the model cannot be captured, or not be written as ONNX.
        OutputExistsError: the folder holds something else.
        VerificationError: masked model, slim model and ONNX file do not compute the same; no result is written.
        UnfinishedError: an int8 file could not be made, though the dense model could be quantized before the training;
            everything else is delivered, and the error holds the result.
    """
    asked = {"macs": macs, "params": params, "speedup": speedup, "latency_ms": latency_ms}
    settings = _settings(config or CompressConfig(), asked)
    options = benchmark or BenchmarkOptions()
    if not options.seconds and any(settings.budget(number).has_latency for number in range(settings.n_students)):
        raise UsageError("a budget in latency is measured at the end: give the benchmark some seconds")
    processes = Processes.join(settings.device)
    if not settings.epochs and (processes.world > 1 or resume):
        problem = "is nothing to go on with: start afresh" if resume else "is work for one process alone: start one"
        raise UsageError(f"without a training there {problem}")
    if not processes.is_first:
        return _help(model, images, example_inputs, settings, data or DataOptions(), output, processes)
    folder = OutputFolder(None if output is None else Path(output), resume=resume, force=force)
    clock = _Clock(reporter)
    with torch_threads(settings.threads), folder.open() as staging:
        loaded = load_model(Path(model)) if isinstance(model, str | os.PathLike) else model
        with clock("reading images"):
            source, judges = _read(loaded, images, eval_images, data or DataOptions(), reporter)
        with clock("capturing the model"):
            graph = _captured(loaded, source, example_inputs)
            engine: Engine | Untrained | None = None
            if settings.epochs:
                engine = _engine(
                    graph,
                    source,
                    settings,
                    folder.checkpoint,
                    folder.resume,
                    progress=None if reporter is None else reporter.step,
                    observer=observer,
                    processes=processes,
                )
        if engine is None:
            with clock("seeing what every layer computes"):
                engine = Untrained(graph, source, settings, None if reporter is None else reporter.part)
        closed_form: ClosedForm | None = None
        if isinstance(engine, Engine) and settings.course == RECONSTRUCTED and not folder.resume:
            with clock("seeing what every layer computes"):
                part = None if reporter is None else reporter.part
                closed_form = ClosedForm(graph, engine.batches.source, settings.seed, part, rotates=False)
        shared = {"preprocessing": None if source.preprocess is None else source.preprocess.to_dict()}
        folder.check(shared)
        _log_model(engine.graph)
        delivery = Delivery(engine, staging, loaded)
        search = SearchOptions(journal=folder.search, progress=None if reporter is None else reporter.evaluation)
        with clock("searching an allocation" if settings.policy in SEARCHES else "rehearsing"):
            delivery.rehearse(options.target, folder.journal if folder.resume else None, search, quantize)
            if metric is not None:
                try_metric(delivery, judges, metric)
        folder.begin(shared, has_searched=settings.policy in SEARCHES)
        delivery.note_latencies(folder.journal)
        if closed_form is not None and isinstance(engine, Engine):
            with clock("fitting in closed form"):
                engine.begin(closed_form.starts(engine.students), closed_form.to_dict())
            closed_form = None  # with all that was seen, which is large
        with clock("training" if settings.epochs else "fitting in closed form"):
            if isinstance(engine, Untrained):
                results = engine.run(delivery.plans)
            else:
                results = engine.run(processes.first(folder.resume))
        with clock("removing channels"):
            for result, name in _delivered(results, settings):
                delivery.cut(result, name)
        with clock("verifying"):
            for member in delivery.members:
                member.verify()
        int8: list[dict[str, Any]] = []
        failed: dict[str, Exception] = {}
        if quantize is not None:
            with clock("quantizing"):
                int8, failed = quantize_members(delivery, delivery.source, quantize)
        with clock("measuring"):
            metrics = measure(delivery, source, judges, options, int8, metric)
        facts = {"record": dict(record or {}), "students": _students(results), **clock.to_dict()}
        if isinstance(engine, Untrained):
            facts["reconstruction"] = engine.to_dict()
        else:
            facts["steps"] = {"number": engine.done, "cpu_seconds": round(engine.step_seconds, 2)}
            if engine.facts:
                facts["reconstruction"] = engine.facts
        missing = {name: f"{int8_name(name)}.onnx: {said(error)}" for name, error in failed.items()}
        metrics = _finite({**metrics, **facts, "int8_missing": missing})
        atomic_write_json(staging / "metrics.json", metrics)
        folder.commit(staging)
        for member in delivery.members:
            counted = {unit: share for unit, share in member.result.cost.items() if unit != LATENCY}  # that is measured
            shares = ", ".join(f"{unit} {share:.4f} of the dense" for unit, share in counted.items())
            logger.info("done: %s, %s", member.name, shares)
    first = delivery.members[0]
    family = {member.name: member.model for member in delivery.members}
    done = CompressResult(first.model, first.result.plan, metrics, folder.path, family)
    problem = missed(metrics)
    for name, error in failed.items():
        slow = f"; and the budget was not reached: {problem}" if problem else ""
        raise UnfinishedError(
            f"{name}.onnx is made and all that goes with it, but not {missing[name]}{slow}", done, cause=error
        ) from error
    if problem:
        raise MissedBudgetError(f"the budget was not reached: {problem}", done)
    return done


def _delivered(results: Sequence[StudentResult], config: CompressConfig) -> list[tuple[StudentResult, str]]:
    """The students to deliver, with their names: all of a family; of several with one budget, the best."""
    names = member_names(config)
    if len(results) == 1 or len(set(names)) > 1:
        return list(zip(results, names, strict=True))
    best = max(results, key=lambda result: result.agreement)
    logger.info(
        "of %d students the one that agrees best with the dense model on the images held out is delivered: "
        "student %d, agreement %.4f (the others: %s)",
        *(len(results), best.number, best.agreement),
        ", ".join(f"{result.agreement:.4f}" for result in results if result is not best),
    )
    return [(best, names[0])]


def _students(results: Sequence[StudentResult]) -> list[dict[str, Any]]:
    """All students of a run, delivered or not."""
    return [
        {"number": r.number, "held_out_agreement": r.agreement, "cost": r.cost} for r in results if len(results) > 1
    ]


class _Clock:
    """Seconds of each part of the work; says when one begins."""

    def __init__(self, reporter: Reporter | None) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._reporter = reporter

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._reporter is not None:
            self._reporter.stage(name)
        start, worked = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self.cpu_seconds[name] = round(time.process_time() - worked, 2)
        logger.debug("%s: %.2f s", name, self.seconds[name])

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Plain data for JSON."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}


def _settings(config: CompressConfig, asked: Mapping[str, float | Sequence[float] | None]) -> CompressConfig:
    """The settings with the budgets that are asked for, and as many students as there are."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, Sequence) else value for name, value in asked.items()
    }
    budgets: dict[str, Any] = {name: getattr(config, name) if value is None else value for name, value in given.items()}
    students = max([config.n_students, *(len(value) for value in budgets.values() if isinstance(value, tuple))])
    config = dataclasses.replace(config, n_students=students, **budgets)
    config.require_goal()
    return config


def _read(
    model: nn.Module | ExportedProgram,
    images: Images,
    eval_images: Images | None,
    options: DataOptions,
    reporter: Reporter | None,
) -> tuple[Source, Source | None]:
    progress = None if reporter is None else reporter.images
    source = read_images(images, options, model, progress)
    if eval_images is None:
        return source, None
    same = DataOptions()
    if isinstance(source, ImageSource):
        seen = source.preprocess
        same = DataOptions(image_size=seen.image_size, channels=seen.channels, mean=seen.mean, std=seen.std)
    judges = read_images(eval_images, same, model, progress)
    if judges.shapes != source.shapes:
        sizes = [
            ", ".join("x".join(map(str, shape[1:])) for shape in part.shapes.values()) for part in (judges, source)
        ]
        raise DataError(
            f"the images to measure on ({judges.name}) are {sizes[0]}, those to learn from {sizes[1]}: "
            "give both in one size"
        )
    return source, judges


def _captured(
    model: nn.Module | ExportedProgram, source: Source, example_inputs: tuple[Any, ...] | None
) -> ChannelGraph:
    """Capture and analyze the model."""
    graph = analyze(capture_on(model, source, example_inputs))
    for operator, times in graph.unknown.items():
        logger.warning("operator %s is unknown (used %d times): nothing that it touches is removed", operator, times)
    return graph


def _engine(
    graph: ChannelGraph,
    source: Source,
    config: CompressConfig,
    checkpoint: Path | None,
    resume: bool,
    **options: Any,
) -> Engine:
    """A training; refuses a budget out of reach, and a checkpoint of another run."""
    # A copy, because the engine brings weights into the memory layout that is fastest here; the graph keeps its own.
    teacher = copy.deepcopy(graph.front_end.module)
    engine = Engine(teacher, graph, source, config, checkpoint=checkpoint, **options)
    if resume and engine.checkpoint is not None:
        state = load_checkpoint(engine.checkpoint, config, engine.digest)
        engine.batches.refuse_other(state["images"])
    return engine


def _help(
    model: str | os.PathLike[str] | nn.Module | ExportedProgram,
    images: Images,
    example_inputs: tuple[Any, ...] | None,
    config: CompressConfig,
    options: DataOptions,
    output: str | os.PathLike[str] | None,
    processes: Processes,
) -> CompressResult:
    """What a process does that is not the first: train along, and write nothing."""
    with torch_threads(config.threads), tempfile.TemporaryDirectory(prefix="graphprune-") as scratch:
        loaded = load_model(Path(model)) if isinstance(model, str | os.PathLike) else model
        source = read_images(images, options, loaded)
        checkpoint = None if output is None else Path(output) / CHECKPOINT
        graph = _captured(loaded, source, example_inputs)
        engine = _engine(graph, source, config, checkpoint, False, processes=processes)
        results = engine.run(processes.first(False))
        delivery = Delivery(engine, Path(scratch))
        family = {name: delivery.cut(result, name) for result, name in _delivered(results, config)}
    first = next(iter(family.values()))
    return CompressResult(
        first.model, first.result.plan, {}, None, {name: member.model for name, member in family.items()}
    )


def _log_model(graph: ChannelGraph) -> None:
    every = graph.all_kept()
    logger.info(
        "model: %s MACs, %s parameters; %d groups of coupled channels in %d sets",
        *(count(graph.cost.macs(every)), count(graph.cost.params(every)), graph.n_groups, len(graph.sets)),
    )


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
