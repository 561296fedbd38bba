"""Latency of ONNX models against each other, measured so that the comparison holds.

Protocol: every model gets one onnxruntime session (operators one after another, `threads` inside one). After a
warm-up the models take turns, in a new random order each round, so that a drift of the machine - clock rate,
neighbors - meets them all alike. A turn is a few timed runs, after one untimed run that brings the weights of a
quick model back into the caches. Rounds go on until there are `min_rounds` and every model was timed for `min_seconds`.

The speed-up is the ratio of medians to the first model. Its 95 % interval is a bootstrap over whole rounds, because
runs within a round are not independent and the models of a round belong together.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from graphprune.machine import Machine, machine_facts
from graphprune.onnx_session import (
    CPU,
    RUNTIME_ERRORS,
    InputSpec,
    OnnxSource,
    input_shapes,
    input_specs,
    one_line,
    open_session,
    random_inputs,
)
from graphprune.passes.errors import DataError, UnsupportedModelError, UsageError

__all__ = ["BUSY", "FASTER", "NOT_FASTER", "BenchmarkReport", "Contender", "ModelTiming", "benchmark"]

logger = logging.getLogger("graphprune")

FASTER = "faster"
NOT_FASTER = "not faster on this machine"
# An idle machine shows 0 to 0.02.
BUSY = 0.05

_WARM_UP_SECONDS = 0.2
_TURN_SECONDS = 0.03
_RUNS_PER_TURN = (1, 50)
# With fewer rounds the interval is too narrow: on simulated times it covers the truth in 75 % of cases at 3 rounds,
# in 93 % at 6.
_FEWEST_ROUNDS = 6
_RESAMPLES = 1000
_CONFIDENCE = 95.0


@dataclass(frozen=True)
class ModelTiming:
    """Latency of one model.

    Attributes:
        name: The model's name in this benchmark.
        median_ms: Median latency of one run (a whole batch).
        p10_ms: The 10th percentile.
        p90_ms: The 90th percentile.
        runs: Number of timed runs.
        speedup: Median of the first model over this one's; 1 for the first model.
        speedup_interval: Bootstrap 95 % interval of the speed-up.
        verdict: `FASTER` when the whole interval is above 1, else `NOT_FASTER`; "" for the first model.
    """

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    speedup: float
    speedup_interval: tuple[float, float]
    verdict: str


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
        interference: Share of the measured time in which the processor was given to something else; None when it
            is not known, with several threads. Medians of a busy machine (`BUSY`) are not to be trusted, nor are
            their ratios: a longer run is interrupted more often.
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
            **{key: getattr(self, key) for key in ("batch", "threads", "provider", "seed", "rounds", "interference")},
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "machine": self.machine.to_dict(),
        }


def benchmark(
    models: Mapping[str, OnnxSource],
    *,
    threads: int = 1,
    batch: int = 1,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    provider: str = CPU,
    min_seconds: float = 2.0,
    min_rounds: int = 20,
    max_seconds: float = 60.0,
) -> BenchmarkReport:
    """Measure the latency of ONNX models side by side.

    Args:
        models: Name to file (path or content). The first one is what the others are compared with.
        threads: Threads inside one operator.
        batch: Samples in one run, for models whose batch is free.
        inputs: Arrays by input name, instead of random ones.
        shapes: Shapes by input name, where the file leaves more than the batch open; the key "" stands for an
            only input.
        seed: Seed of random inputs and of the order.
        provider: Onnxruntime's execution provider.
        min_seconds: Timed seconds that every model gets at least.
        min_rounds: Rounds that are measured at least, unless `max_seconds` is over.
        max_seconds: Seconds after which no further round begins (six are always measured).

    Raises:
        ModelLoadError: A file is missing, broken or beyond this onnxruntime.
        UsageError: A size is open, or a fixed batch is not the one asked for.
    """
    if not models:
        raise UsageError("there is no model to benchmark")
    if batch < 1:
        raise UsageError(f"a batch of {batch} was asked for; at least 1 is needed")
    contenders = [
        Contender.open(name, source, threads, provider).feed(batch, inputs, shapes, seed)
        for name, source in models.items()
    ]
    logger.info("measuring %s, about %.0f s", ", ".join(models), min_seconds * 1.2 * len(models) + 1)
    rng = np.random.default_rng(seed)
    for contender in contenders:
        contender.warm_up()
    rounds = _measure(contenders, rng, min_seconds, min_rounds, max_seconds)
    waited = 1 - sum(c.cpu_seconds for c in contenders) / sum(c.wall_seconds for c in contenders)
    report = BenchmarkReport(
        models=_summarize(contenders, rng),
        batch=batch,
        threads=threads,
        provider=provider,
        seed=seed,
        rounds=rounds,
        inputs=contenders[0].shapes,
        machine=machine_facts(),
        interference=max(0.0, waited) if threads == 1 else None,
    )
    if report.is_disturbed:
        logger.warning(
            "other work took %.0f %% of the processor: repeat the measurement on an idle machine", 100 * waited
        )
    return report


class Contender:
    """One model in the benchmark: its session, its inputs, and the times of its runs (rounds x runs, seconds)."""

    def __init__(self, name: str, session: ort.InferenceSession, specs: tuple[InputSpec, ...]) -> None:
        self.name = name
        self.times: list[list[float]] = []
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._session = session
        self._specs = specs
        self._binding = session.io_binding()
        self._runs_per_turn = 1

    @classmethod
    def open(cls, name: str, source: OnnxSource, threads: int, provider: str) -> "Contender":
        """A session of its own for one model."""
        label = name if isinstance(source, bytes) else None
        session = open_session(source, threads=threads, provider=provider, name=label)
        return cls(name, session, input_specs(session, name))

    def feed(
        self,
        batch: int,
        inputs: Mapping[str, np.ndarray] | None,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
    ) -> "Contender":
        """Bind inputs and outputs once, so that a timed run copies nothing in Python."""
        if inputs is None:
            fixed = self._specs[0].dims[:1] if self._specs else ()
            if fixed and isinstance(fixed[0], int) and fixed[0] != batch and not shapes:
                raise UsageError(f"{self.name}: has a fixed batch of {fixed[0]}; measure it with --batch {fixed[0]}")
            known = input_shapes(self._specs, batch=batch, shapes=shapes, name=self.name)
            inputs = random_inputs(self._specs, known, seed)
        for spec in self._specs:
            if spec.name not in inputs:
                raise DataError(f"{self.name}: no array was given for its input '{spec.name}'")
            array = np.ascontiguousarray(inputs[spec.name], dtype=spec.dtype)
            self.shapes[spec.name] = array.shape
            self._binding.bind_cpu_input(spec.name, array)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)
        return self

    def warm_up(self, seconds: float = _WARM_UP_SECONDS) -> None:
        """Run until caches, clock and memory pools have settled, and choose the number of runs in a turn."""
        start = time.perf_counter()
        runs = 0
        while runs < 2 or time.perf_counter() - start < seconds:
            self._run()
            runs += 1
        each = (time.perf_counter() - start) / runs
        self._runs_per_turn = int(np.clip(_TURN_SECONDS / each, *_RUNS_PER_TURN))

    def take_turn(self) -> None:
        """Time a few runs, after one that brings the weights back into the caches."""
        if self._runs_per_turn > 1:
            self._run()
        wall, cpu = time.perf_counter(), time.thread_time()
        times = []
        for _ in range(self._runs_per_turn):
            start = time.perf_counter_ns()
            self._run()
            times.append((time.perf_counter_ns() - start) / 1e9)
        self.times.append(times)
        self.cpu_seconds += time.thread_time() - cpu
        self.wall_seconds += time.perf_counter() - wall

    def seconds(self) -> float:
        """Timed seconds so far."""
        return sum(map(sum, self.times))

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except RUNTIME_ERRORS as error:
            raise UnsupportedModelError(f"{self.name}: onnxruntime cannot run it: {one_line(error)}") from error


def _measure(
    contenders: Sequence[Contender],
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


def _summarize(contenders: Sequence[Contender], rng: np.random.Generator) -> tuple[ModelTiming, ...]:
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
                runs=seconds.size,
                speedup=float(np.median(times[0]) * 1e3 / median),
                speedup_interval=(float(low), float(high)),
                verdict="" if index == 0 else FASTER if low > 1 else NOT_FASTER,
            )
        )
    return tuple(timings)


def _resampled_medians(times: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Draw rounds with replacement, the same ones for every model, and return each model's medians over them."""
    rounds = len(times[0])
    drawn = rng.integers(0, rounds, (_RESAMPLES, rounds))
    return [np.array([np.median(seconds[rows]) for rows in drawn]) for seconds in times]
