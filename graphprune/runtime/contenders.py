"""What takes turns in a benchmark: a model that answers one request at a time, or one that serves many at once.

Latency: one session, one run after the other. Throughput: as many sessions as keep all processors busy, each fed
by a thread of its own without a pause; the rate of a turn is the sum of the streams' own rates, so that the end of
a turn, when some streams are done before others, does not count.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort

from graphprune.passes.errors import DataError, UnsupportedModelError, UsageError
from graphprune.runtime.onnx_inputs import InputSpec, batch_of, input_shapes, input_specs, random_inputs
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, OnnxSource, one_line, open_session
from graphprune.runtime.pinning import pinned

__all__ = ["Contender", "Streams", "interference"]

_WARM_UP_SECONDS = 0.2
_TURN_SECONDS = 0.03
_RUNS_PER_TURN = (1, 50)
# Long beside the time that starting the streams takes.
_STREAM_TURN_SECONDS = 0.25


class Contender:
    """One model in the benchmark: its session, its inputs, and the times of its runs (rounds x runs, seconds)."""

    def __init__(self, name: str, session: ort.InferenceSession, specs: tuple[InputSpec, ...]) -> None:
        self.name = name
        self.times: list[list[float]] = []
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.batch = 1
        self._session = session
        self._specs = specs
        self._binding = session.io_binding()
        self._runs_per_turn = 1

    @classmethod
    def open(
        cls, name: str, source: OnnxSource, threads: int, provider: str, processors: Sequence[int] | None = None
    ) -> "Contender":
        """A session of its own for one model; its workers stay on `processors`."""
        label = name if isinstance(source, bytes) else None
        session = open_session(source, threads=threads, provider=provider, name=label, processors=processors)
        return cls(name, session, input_specs(session, name))

    def feed(
        self,
        batch: int | None,
        inputs: Mapping[str, np.ndarray] | None,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
    ) -> "Contender":
        """Bind inputs and outputs once, so that a timed run copies nothing in Python; afterwards `batch` is known.

        Args:
            batch: Samples in one run; None: as many as the inputs, the shapes or the file say, or else one.
            inputs: Arrays by input name.
            shapes: Shapes by input name, for random inputs.
            seed: Of these.

        Raises:
            UsageError: What is asked for contradicts itself or the file.
            DataError: An array is missing.
        """
        if inputs is None:
            self.batch = batch_of(self._specs, batch=batch, shapes=shapes, name=self.name)
            known = input_shapes(self._specs, batch=self.batch, shapes=shapes, name=self.name)
            inputs = random_inputs(self._specs, known, seed)
        for spec in self._specs:
            if spec.name not in inputs:
                raise DataError(f"{self.name}: no array was given for its input '{spec.name}'")
            array = np.asarray(inputs[spec.name], dtype=spec.dtype, order="C")
            self.shapes[spec.name] = array.shape
            self._binding.bind_cpu_input(spec.name, array)
        first = self.shapes[self._specs[0].name] if self._specs else ()
        if first and batch not in (None, first[0]):
            raise UsageError(f"{self.name}: its inputs hold a batch of {first[0]}, {batch} was asked for")
        self.batch = first[0] if first else self.batch
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)
        return self

    def warm_up(self, seconds: float = _WARM_UP_SECONDS) -> None:
        """Run until caches, clock and memory pools have settled, and choose the number of runs in a turn."""
        start = time.perf_counter()
        runs = 0
        while runs < 2 or time.perf_counter() - start < seconds:
            self.run()
            runs += 1
        each = (time.perf_counter() - start) / runs
        self._runs_per_turn = int(np.clip(_TURN_SECONDS / each, *_RUNS_PER_TURN))

    def take_turn(self) -> None:
        """Time a few runs, after one that brings the weights back into the caches."""
        if self._runs_per_turn > 1:
            self.run()
        wall, cpu = time.perf_counter(), time.thread_time()
        times = []
        for _ in range(self._runs_per_turn):
            start = time.perf_counter_ns()
            self.run()
            times.append((time.perf_counter_ns() - start) / 1e9)
        self.times.append(times)
        self.cpu_seconds += time.thread_time() - cpu
        self.wall_seconds += time.perf_counter() - wall

    def seconds(self) -> float:
        """Timed seconds so far."""
        return sum(map(sum, self.times))

    def run(self) -> None:
        """Run once.

        Raises:
            UnsupportedModelError: onnxruntime gives up on the way.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except RUNTIME_ERRORS as error:
            raise UnsupportedModelError(f"{self.name}: onnxruntime cannot run it: {one_line(error)}") from error


class Streams:
    """One model that serves many requests at once; `times` holds seconds for one sample, one number a round."""

    def __init__(self, name: str, streams: Sequence[Contender], processors: Sequence[Sequence[int]] | None) -> None:
        self.name = name
        self.times: list[list[float]] = []
        self.runs = 0
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.shapes = streams[0].shapes
        self._streams = streams
        self._processors = processors
        self.batch = 1
        self._timed = 0.0

    @classmethod
    def open(
        cls,
        name: str,
        source: OnnxSource,
        threads: int,
        provider: str,
        streams: int,
        processors: Sequence[Sequence[int]] | None,
    ) -> "Streams":
        """So many sessions of one model, each with its own share of `processors`."""
        places = [None if processors is None else processors[at] for at in range(streams)]
        opened = [Contender.open(name, source, threads, provider, place) for place in places]
        return cls(name, opened, processors)

    def feed(
        self,
        batch: int | None,
        inputs: Mapping[str, np.ndarray] | None,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
    ) -> "Streams":
        """Bind inputs and outputs of every stream, as `Contender.feed` does."""
        for stream in self._streams:
            stream.feed(batch, inputs, shapes, seed)
        self.batch = self._streams[0].batch
        self.shapes = self._streams[0].shapes
        return self

    def warm_up(self, seconds: float = _WARM_UP_SECONDS) -> None:
        """Run all streams until caches, clock and memory pools have settled."""
        self._serve(seconds)

    def take_turn(self) -> None:
        """Serve for a quarter of a second, and note the seconds that one sample took."""
        served = self._serve(_STREAM_TURN_SECONDS)
        self.times.append([1 / (self.batch * sum(runs / wall for runs, wall, _ in served))])
        for runs, wall, cpu in served:
            self.runs += runs
            self.wall_seconds += wall
            self.cpu_seconds += cpu

    def seconds(self) -> float:
        """Timed seconds so far."""
        return self._timed

    def _serve(self, seconds: float) -> list[tuple[int, float, float]]:
        """Runs of every stream, their seconds, and those in which its thread had a processor."""
        start_line = threading.Barrier(len(self._streams))
        self._timed += seconds

        def serve(number: int) -> tuple[int, float, float]:
            with pinned(None if self._processors is None else self._processors[number]):
                start_line.wait()
                start, worked, runs = time.perf_counter(), time.thread_time(), 0
                while runs < 1 or time.perf_counter() - start < seconds:
                    self._streams[number].run()
                    runs += 1
                return runs, time.perf_counter() - start, time.thread_time() - worked

        with ThreadPoolExecutor(len(self._streams)) as pool:
            return list(pool.map(serve, range(len(self._streams))))


def interference(contenders: Iterable[Contender | Streams]) -> float:
    """Share of the time of all turns in which the processor was given to something else."""
    found = list(contenders)
    return max(0.0, 1 - sum(c.cpu_seconds for c in found) / sum(c.wall_seconds for c in found))
