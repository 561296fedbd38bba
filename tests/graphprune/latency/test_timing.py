import logging

import pytest

from graphprune.latency import LatencyTarget, timing
from graphprune.latency.timing import Reference

DENSE = 10.0  # ms
FILES = {b"dense": DENSE, b"first": 2.5, b"slim": 2.0}


class Machine:
    """Runs files in the time of `FILES`; small ones take `factor` times as long. Waiting makes it `after`."""

    def __init__(self, after: float) -> None:
        self.factor = 1.0
        self.after = after
        self.waited: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.factor = self.after

    def open(self, name: str, source: bytes, *_: object) -> "Opened":
        return Opened(self, FILES[source])


class Opened:
    wall_seconds = 0.0

    def __init__(self, machine: Machine, milliseconds: float) -> None:
        self.machine, self.milliseconds = machine, milliseconds
        self.times: list[list[float]] = []

    def feed(self, *_: object) -> "Opened":
        return self

    def warm_up(self, *_: float) -> None:
        pass

    def take_turn(self) -> None:
        factor = 1.0 if self.milliseconds == DENSE else self.machine.factor
        self.times.append([factor * self.milliseconds / 1e3])

    def seconds(self) -> float:
        return sum(map(sum, self.times))


@pytest.fixture
def on(monkeypatch):
    """A reference on a machine that becomes `after` when it is waited for."""

    def opened(after: float = 1.0) -> tuple[Reference, Machine]:
        machine = Machine(after)
        monkeypatch.setattr(timing.Contender, "open", machine.open)
        monkeypatch.setattr(timing.time, "sleep", machine.sleep)
        return Reference(b"dense", LatencyTarget()), machine

    return opened


@pytest.mark.parametrize("is_watched", [False, True])
def test_a_share_is_that_of_the_dense_latency(on, is_watched):
    reference, machine = on()
    if is_watched:
        reference.watch(b"first", 0.25)
    assert reference.share(b"slim") == pytest.approx((0.2, DENSE))
    assert machine.waited == []


def test_what_was_in_the_way_is_waited_for(on, caplog):
    reference, machine = on(after=1.0)
    reference.watch(b"first", 0.25)
    machine.factor = 1.4
    with caplog.at_level(logging.WARNING):
        assert reference.share(b"slim") == pytest.approx((0.2, DENSE))
    assert len(machine.waited) == 1
    assert caplog.messages == []


def test_what_stays_in_the_way_is_told_and_corrected_for(on, caplog):
    reference, machine = on(after=1.3)
    reference.watch(b"first", 0.25)
    machine.factor = 1.4
    with caplog.at_level(logging.WARNING):
        assert reference.share(b"slim") == pytest.approx((0.2, DENSE))
    assert machine.waited == list(timing._PAUSES)
    assert caplog.messages == [
        "latency: other work is in the way: shapes that took 0.250 of the dense time take 0.325 of it now; what is "
        "measured is corrected for that"
    ]


def test_nothing_is_known_of_a_machine_without_an_earlier_measurement(on):
    reference, machine = on()
    machine.factor = 1.5
    assert reference.share(b"slim") == pytest.approx((0.3, DENSE))
    assert machine.waited == []
