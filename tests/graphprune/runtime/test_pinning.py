import os

import pytest

from graphprune.runtime import pinning

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept in place here")


@pytest.fixture
def machine(monkeypatch):
    """Four processors, two to a core: (0, 1) and (2, 3); processor 2 is busy."""
    ticks = iter([{0: 0, 1: 0, 2: 0, 3: 0}, {0: 10, 1: 10, 2: 1, 3: 10}])
    monkeypatch.setattr(pinning.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(pinning.os, "sched_setaffinity", lambda pid, mask: None, raising=False)
    monkeypatch.setattr(pinning, "_idle_ticks", lambda: next(ticks))
    monkeypatch.setattr(pinning, "_core_of", lambda cpu: str(cpu // 2))
    monkeypatch.setattr(pinning.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(("count", "expected"), [(1, (3,)), (2, (3, 1)), (3, (3, 1, 0)), (4, (0, 1, 2, 3)), (5, None)])
def test_the_quietest_processors_on_cores_of_their_own(machine, count, expected):
    assert pinning.quietest(count) == expected


def test_systems_that_cannot_do_it(monkeypatch):
    monkeypatch.delattr(pinning.os, "sched_setaffinity", raising=False)
    assert pinning.quietest(1) is None
    with pinning.pinned(None):
        pass


@needs_affinity
def test_the_thread_is_let_go_even_after_an_error():
    before = os.sched_getaffinity(0)
    seen = []

    def fail():
        with pinning.pinned([max(before)]):
            seen.append(os.sched_getaffinity(0))
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert seen == [{max(before)}]
    assert os.sched_getaffinity(0) == before


@pytest.fixture
def counts(monkeypatch, tmp_path):
    """A machine of two processors whose counts can be set: (busy seconds of each, seconds of this process, time)."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(pinning, "_STAT", stat)
    monkeypatch.setattr(pinning.os, "sysconf", lambda name: 100, raising=False)

    def at(busy, own, now):
        rows = [
            f"cpu{n} {int(70 * each)} 0 {int(20 * each)} 999 5 0 0 {int(10 * each)} 0 0" for n, each in busy.items()
        ]
        stat.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 0", *rows, "ctxt 3"]))
        monkeypatch.setattr(pinning.time, "process_time", lambda: own)
        monkeypatch.setattr(pinning.time, "perf_counter", lambda: now)

    return at


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (4.0, 0.0),  # both processors are ours, threads that spin included
        (3.0, 0.25),
        (4.5, 0.0),  # the process has other threads elsewhere
        (9.0, None),  # counts that cannot be this machine's
    ],
)
def test_work_of_others_is_what_processors_did_besides(counts, own, expected):
    counts({0: 100, 1: 50, 2: 0}, 10, 1000)
    watched = pinning.OtherWork((0, 1))
    counts({0: 102, 1: 52, 2: 70}, 10 + own, 1002)
    assert watched.share() == (expected if expected is None else pytest.approx(expected))


def test_work_of_others_is_not_known_everywhere(counts, tmp_path):
    counts({0: 0, 1: 0}, 0, 0)
    nowhere, elsewhere, watched = pinning.OtherWork(None), pinning.OtherWork((7,)), pinning.OtherWork((0, 1))
    counts({0: 0.1, 1: 0.1}, 0, 0.1)
    assert watched.share() is None  # too soon
    counts({0: 2, 1: 2}, 2, 2)
    assert (nowhere.share(), elsewhere.share(), watched.share()) == (None, None, pytest.approx(0.5))
    (tmp_path / "stat").unlink()
    assert watched.share() is None
    assert pinning.OtherWork((0, 1)).share() is None


def test_workers_are_counted_from_one_and_the_caller_is_not_one():
    assert pinning.worker_affinities((4, 0, 6)) == "1;7"
    assert pinning.worker_affinities((4,)) == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept in place here")
def test_processors_that_are_gone_are_said_to_be(monkeypatch, caplog):
    def refuse(*_):
        raise OSError("Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with pinning.pinned((0,)):
        pass
    assert "processors 0 cannot be had any more" in caplog.text
