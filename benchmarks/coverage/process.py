"""One model, one process: a crash, a hang or a peak of memory stays its own.

The child writes its row to a file whenever it enters a stage, so that the parent can tell where a child was
that it had to kill.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
MEGABYTE = 2**20


def run_child(arguments: Sequence[str], limit: float, threads: int, main: Callable[[], None]) -> Row:
    """The row that `main` made of these arguments, or of what it got to in `limit` seconds.

    `main` runs in a fork of this process, which has imported the libraries already.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "row.json", Path(folder) / "stderr"
        errors.touch()
        command = [*arguments, "--threads", str(threads), "--row", str(output)]
        start = time.perf_counter()
        child = multiprocessing.get_context("fork").Process(target=_become_child, args=(command, errors, main))
        child.start()
        child.join(limit)
        code = child.exitcode
        if code is None and child.pid is not None:
            os.killpg(child.pid, signal.SIGKILL)
            child.join()
        tail = errors.read_text(errors="replace")[-1000:].strip().splitlines()
        row: Row = json.loads(output.read_text()) if output.exists() else {"stage": "start"}
    row["wall_seconds"] = round(time.perf_counter() - start, 1)
    if code is None:
        row.update(status="timeout", error={"type": "timeout", "message": f"not done after {limit:g} s"})
    elif row.get("status") == "running" or "status" not in row:
        kind = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        row.update(status="killed", error={"type": kind, "message": plain(tail[-1]) if tail else ""})
    return row


def _become_child(command: Sequence[str], errors: Path, main: Callable[[], None]) -> None:
    os.setsid()  # so that what it starts can be ended with it
    nothing, log = os.open(os.devnull, os.O_WRONLY), os.open(errors, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(log, 2)
    sys.argv[1:] = command
    main()


class Stages:
    """Seconds and processor seconds of the stages of one run, added up by name.

    Attributes:
        row: what is handed to the parent; its "stage" is the one that runs or ran last.
        seconds: stage -> wall-clock seconds.
        cpu: stage -> processor seconds of this process, which other processes disturb less.
    """

    def __init__(self, row: Row, path: Path | None = None) -> None:
        self.row = row
        self.path = path
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block as stage `name`."""
        self.row["stage"] = name
        self.save()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - wall
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu

    def save(self) -> None:
        """Write the row where the parent finds it."""
        if self.path is not None:
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps(self.row))
            temporary.replace(self.path)


@contextmanager
def clock_calls(owner: Any, names: Sequence[str]) -> Iterator[Callable[[], tuple[float, float]]]:
    """Time all calls of some functions of a module; gives (seconds, processor seconds), inner calls counted once."""
    spent = [0.0, 0.0]
    depth = 0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                if depth == 0:
                    spent[0] += time.perf_counter() - wall
                    spent[1] += time.process_time() - cpu

        return call

    originals = {name: getattr(owner, name) for name in names if hasattr(owner, name)}
    for name, function in originals.items():
        setattr(owner, name, timed(function))
    try:
        yield lambda: (spent[0], spent[1])
    finally:
        for name, function in originals.items():
            setattr(owner, name, function)


def limit_memory(gigabytes: float) -> None:
    """An allocation beyond this is an error of this process and not the end of another one."""
    if gigabytes:
        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)


def reset_peak() -> None:
    """Let the peak of resident memory start from what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_mb() -> tuple[float, float]:
    """Resident memory now and at its peak, in MB of 2**20 bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[key].split()[0]) * 1024 / MEGABYTE for key in ("VmRSS", "VmHWM"))


def describe(error: BaseException) -> dict[str, str]:
    """Kind, first line and innermost places of an error."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{plain(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    own = [place for place in places if place.startswith(("passes/", "graphprune/"))]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return {
        "type": type(error).__name__,
        "message": plain(" | ".join(lines[:4]))[:600],
        "at": places[-1] if places else "",
        "own": own[-1] if own else "",
    }


def plain(text: str) -> str:
    """Text without the folders of this machine."""
    folders = [str(REPOSITORY), *sorted({path for path in sys.path if path.startswith("/")}, key=len, reverse=True)]
    for folder in folders:
        text = text.replace(folder + "/", "")
    return text


def save_rows(path: Path, numbers: range, check: Callable[[int], Row]) -> None:
    """Leave a row for each number in a file, which is written anew after each of them."""
    row: Row = {"status": "running", "rows": []}
    stages = Stages(row, path)
    for number in numbers:
        row["rows"].append({"number": number, **check(number)})
        stages.save()
    row["status"] = "done"
    stages.save()
