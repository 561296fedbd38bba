"""Latency of ONNX models against each other, measured so that the comparison holds.

Protocol: every model gets one onnxruntime session (operators one after another, `threads` inside one), its threads
kept on the quietest processors. After a warm-up the models take turns, in a new random order each round, so that a
drift of the machine - clock rate, neighbors - meets them all alike. A turn is a few timed runs, after one untimed run
that brings the weights of a quick model back into the caches. Rounds go on until there are `min_rounds` and every
model was timed for `min_seconds`.

The speed-up is the ratio of medians to the first model. Its 95 % interval is a bootstrap over whole rounds, because
runs within a round are not independent and the models of a round belong together.

Throughput is measured alike: the turn of a model is a quarter of a second in which as many sessions as fill the
processors run without a pause, and what is compared is the time that one sample took.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graphprune.passes.errors import UsageError
from graphprune.runtime.contenders import Contender, Streams, interference
from graphprune.runtime.machine import Machine, machine_facts
from graphprune.runtime.onnx_inputs import batch_of, input_shapes, input_specs
from graphprune.runtime.onnx_session import CPU, OnnxSource, open_session
from graphprune.runtime.pinning import OtherWork, pinned, quietest

__all__ = [
    "BUSY",
    "FASTER",
    "MODES",
    "NOT_FASTER",
    "BenchmarkReport",
    "Contender",
    "ModelTiming",
    "benchmark",
    "benchmark_grid",
]

logger = logging.getLogger("graphprune")

#: One request at a time, or as many as there are processors for.
MODES = ("latency", "throughput")
FASTER = "faster"
NOT_FASTER = "not faster on this machine"
# An idle machine shows 0 to 0.02.
BUSY = 0.05

# With fewer rounds the interval is too narrow: on simulated times it covers the truth in 75 % of cases at 3 rounds,
# in 93 % at 6.
_FEWEST_ROUNDS = 6
_LONGEST = 60.0
_RESAMPLES = 1000
_CONFIDENCE = 95.0


@dataclass(frozen=True)
class ModelTiming:
    """Latency of one model, or its throughput.

    Attributes:
        name: The model's name in this benchmark.
        median_ms: Median latency of one run (a whole batch); of a throughput, the median time that one sample took.
        p10_ms: The 10th percentile.
        p90_ms: The 90th percentile.
        runs: Number of timed runs.
        speedup: Median of the first model over this one's; 1 for the first model.
        speedup_interval: Bootstrap 95 % interval of the speed-up.
        verdict: `FASTER` when the whole interval is above 1, else `NOT_FASTER`; "" for the first model.
        samples_per_second: What the median comes to.
    """

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    speedup: float
    speedup_interval: tuple[float, float]
    verdict: str
    samples_per_second: float = 0.0


_CONDITIONS = ("mode", "batch", "threads", "streams", "provider", "seed", "rounds", "interference")


@dataclass(frozen=True)
class BenchmarkReport:
    """Latencies of several models, the first of which is the reference, and what they were measured on.

    Attributes:
        models: One timing for each model, in the order given.
        batch: Samples in one run.
        threads: Threads inside one operator.
        provider: Onnxruntime's execution provider.
        seed: Seed of the random inputs and of the order of turns.
        rounds: Number of rounds measured.
        inputs: Shape of every input of the first model.
        machine: The machine and the versions.
        interference: Share of the measured time in which the processors were given to something else; None when it
            is not known, with several threads in an operator that are not kept in place. Medians of a busy machine
            (`BUSY`) are not to be trusted, nor are their ratios: a longer run is interrupted more often.
        mode: "latency" or "throughput".
        streams: Sessions that ran at once; 1 for a latency.
        processors: Where the threads were kept; None where they were not.
    """

    models: tuple[ModelTiming, ...]
    batch: int
    threads: int
    provider: str
    seed: int
    rounds: int
    inputs: dict[str, tuple[int, ...]]
    machine: Machine
    interference: float | None = None
    mode: str = "latency"
    streams: int = 1
    processors: tuple[int, ...] | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether the machine was too busy for these latencies to be trusted."""
        return self.interference is not None and self.interference > BUSY

    def __getitem__(self, name: str) -> ModelTiming:
        for timing in self.models:
            if timing.name == name:
                return timing
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "models": [{**asdict(t), "speedup_interval": list(t.speedup_interval)} for t in self.models],
            **{key: getattr(self, key) for key in _CONDITIONS},
            "processors": None if self.processors is None else list(self.processors),
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "machine": self.machine.to_dict(),
        }


def benchmark(
    models: Mapping[str, OnnxSource],
    *,
    threads: int = 1,
    batch: int | None = None,
    mode: str = "latency",
    streams: int | None = None,
    pin: bool = True,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    provider: str = CPU,
    min_seconds: float = 2.0,
    min_rounds: int = 20,
    max_seconds: float | None = None,
) -> BenchmarkReport:
    """Measure the latency, or the throughput, of ONNX models side by side.

    Args:
        models: Name to file (path or content). The first one is what the others are compared with.
        threads: Threads inside one operator.
        batch: Samples in one run; by default as many as the inputs, the shapes or the files say, or else one.
        mode: "latency" (one run at a time) or "throughput" (all processors busy).
        streams: Sessions that run at once for a throughput; by default as many as fill the processors.
        pin: Keep threads on the quietest processors, where the system can do that.
        inputs: Arrays by input name, instead of random ones.
        shapes: Shapes by input name, where the file leaves more than the batch open; the key "" stands for an
            only input, a first size of 0 leaves the batch open.
        seed: Seed of random inputs and of the order.
        provider: Onnxruntime's execution provider.
        min_seconds: Timed seconds that every model gets at least.
        min_rounds: Rounds that are measured at least, unless `max_seconds` is over; a quarter of them for a
            throughput, whose turns are longer.
        max_seconds: Seconds after which no further round begins (six are always measured); by default a minute, or
            three times what `min_seconds` comes to for all models, if that is more.

    Raises:
        ModelLoadError: A file is missing, broken or beyond this onnxruntime.
        UsageError: A size is open, the batch is not that of a file, of the shapes or of the inputs, or an array is for
            no input.
    """
    streams = _checked(models, threads, batch, mode, streams)
    _warn_of_few_processors(threads * streams)
    processors = quietest(threads * streams) if pin else None
    with pinned(None if processors is None else processors[:1]):
        if mode == "latency":
            contenders: list[Any] = [
                Contender.open(name, source, threads, provider, processors) for name, source in models.items()
            ]
        else:
            places = None if processors is None else [processors[at::streams] for at in range(streams)]
            contenders = [
                Streams.open(name, source, threads, provider, streams, places) for name, source in models.items()
            ]
        for contender in contenders:
            contender.feed(batch, inputs, shapes, seed)
        batch = _common_batch(contenders)
        _check_inputs(contenders, inputs)
        logger.info("measuring %s, about %.0f s", ", ".join(models), min_seconds * 1.2 * len(models) + 1)
        rng = np.random.default_rng(seed)
        for contender in contenders:
            contender.warm_up()
        least = min_rounds if mode == "latency" else max(_FEWEST_ROUNDS, min_rounds // 4)
        most = max(_LONGEST, 3 * min_seconds * len(models)) if max_seconds is None else max_seconds
        others = OtherWork(processors)
        rounds = _measure(contenders, rng, min_seconds, least, most)
        # The time of the calling thread is finer, and knows nothing of workers.
        waited = interference(contenders) if threads == 1 else others.share()
    report = BenchmarkReport(
        models=_summarize(contenders, rng, batch if mode == "latency" else 1),
        batch=batch,
        threads=threads,
        provider=provider,
        seed=seed,
        rounds=rounds,
        inputs=contenders[0].shapes,
        machine=machine_facts(),
        interference=waited,
        mode=mode,
        streams=streams,
        processors=processors,
    )
    if report.is_disturbed and waited is not None:
        logger.warning(
            "other work took %.0f %% of the processor: repeat the measurement on an idle machine", 100 * waited
        )
    return report


def benchmark_grid(
    models: Mapping[str, OnnxSource],
    *,
    threads: Sequence[int] = (1,),
    batches: Sequence[int | None] = (None,),
    **options: Any,
) -> tuple[BenchmarkReport, ...]:
    """Measure models at every number of threads and every batch; `options` are those of `benchmark`.

    Example:
        >>> reports = benchmark_grid(files, threads=(1, 2), batches=(1, 16))     # doctest: +SKIP
    """
    if len(batches) > 1 and options.get("inputs") is None:
        _check_batches(models, batches, options.get("shapes"))
    return tuple(
        benchmark(models, threads=number, batch=batch, **options)
        for number in dict.fromkeys(threads)
        for batch in dict.fromkeys(batches)
    )


def _check_batches(
    models: Mapping[str, OnnxSource], batches: Sequence[int | None], shapes: Mapping[str, Sequence[int]] | None
) -> None:
    """Raise what a later measurement would, before the first one has taken its time."""
    for name, source in models.items():
        label = name if isinstance(source, bytes) else None
        specs = input_specs(open_session(source, optimize=False, mapped=True, name=label), name)
        for batch in batches:
            input_shapes(specs, batch=batch_of(specs, batch=batch, shapes=shapes, name=name), shapes=shapes, name=name)


def _common_batch(contenders: Sequence[Contender | Streams]) -> int:
    """The batch of all contenders."""
    first = contenders[0]
    for other in contenders[1:]:
        if other.batch != first.batch:
            raise UsageError(
                f"{first.name} would run at a batch of {first.batch} and {other.name} at one of {other.batch}, which "
                "compares nothing; give one batch for both"
            )
    return first.batch


def _check_inputs(contenders: Sequence[Contender | Streams], inputs: Mapping[str, np.ndarray] | None) -> None:
    """Refuse arrays that no file reads; say where files read tensors of other sizes."""
    read = {name for contender in contenders for name in contender.shapes}
    if unknown := sorted(set(inputs or {}) - read):
        known = ", ".join(f"'{name}'" for name in sorted(read))
        raise UsageError(f"no file has an input '{unknown[0]}'; there is {known}")
    first = contenders[0]
    for other in contenders[1:]:
        if list(other.shapes.values()) != list(first.shapes.values()):
            logger.warning(
                "%s reads %s and %s reads %s: their times differ for that as well",
                *(first.name, _sizes(first), other.name, _sizes(other)),
            )


def _sizes(contender: Contender | Streams) -> str:
    return ", ".join("x".join(map(str, shape)) or "a number" for shape in contender.shapes.values())


def _checked(models: Mapping[str, OnnxSource], threads: int, batch: int | None, mode: str, streams: int | None) -> int:
    """The number of streams, once everything is in range."""
    if not models:
        raise UsageError("there is no model to benchmark")
    if batch is not None and batch < 1:
        raise UsageError(f"a batch of {batch} was asked for; at least 1 is needed")
    if threads < 1:
        raise UsageError(f"{threads} threads asked for; at least 1 is needed")
    if mode not in MODES:
        raise UsageError(f"the mode is {' or '.join(MODES)}, not {mode!r}")
    if streams is not None and (mode == "latency" or streams < 1):
        raise UsageError(f"{streams} streams asked for; streams are at least 1, and of a throughput")
    if mode == "latency":
        return 1
    return streams or max(1, machine_facts().logical_cores // threads)


def _warn_of_few_processors(threads: int) -> None:
    usable = machine_facts().logical_cores
    if threads > usable:
        logger.warning(
            "%d threads on %d usable processor(s): they wait for each other, so these times say little, and none is "
            "kept in place",
            *(threads, usable),
        )


def _measure(
    contenders: Sequence[Contender | Streams],
    rng: np.random.Generator,
    min_seconds: float,
    min_rounds: int,
    max_seconds: float,
) -> int:
    start = time.perf_counter()
    rounds = 0
    while rounds < _FEWEST_ROUNDS or time.perf_counter() - start < max_seconds:
        for index in rng.permutation(len(contenders)):
            contenders[index].take_turn()
        rounds += 1
        if rounds >= min_rounds and all(contender.seconds() >= min_seconds for contender in contenders):
            break
    return rounds


def _summarize(
    contenders: Sequence[Contender | Streams], rng: np.random.Generator, samples: int = 1
) -> tuple[ModelTiming, ...]:
    """`samples`: how many of them one time is for."""
    times = [np.array(contender.times) for contender in contenders]
    medians = _resampled_medians(times, rng)
    timings = []
    for index, (contender, seconds) in enumerate(zip(contenders, times, strict=True)):
        p10, median, p90 = np.percentile(seconds, (10, 50, 90)) * 1e3
        tail = (100 - _CONFIDENCE) / 2
        low, high = np.percentile(medians[0] / medians[index], (tail, 100 - tail))
        timings.append(
            ModelTiming(
                name=contender.name,
                median_ms=float(median),
                p10_ms=float(p10),
                p90_ms=float(p90),
                runs=seconds.size if isinstance(contender, Contender) else contender.runs,
                speedup=float(np.median(times[0]) * 1e3 / median),
                speedup_interval=(float(low), float(high)),
                verdict="" if index == 0 else FASTER if low > 1 else NOT_FASTER,
                samples_per_second=float(samples * 1e3 / median),
            )
        )
    return tuple(timings)


def _resampled_medians(times: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Draw rounds with replacement, the same ones for every model, and return each model's medians over them."""
    rounds = len(times[0])
    drawn = rng.integers(0, rounds, (_RESAMPLES, rounds))
    return [np.array([np.median(seconds[rows]) for rows in drawn]) for seconds in times]
