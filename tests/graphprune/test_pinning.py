import os

import pytest

from graphprune import pinning

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


def test_workers_are_counted_from_one_and_the_caller_is_not_one():
    assert pinning.worker_affinities((4, 0, 6)) == "1;7"
    assert pinning.worker_affinities((4,)) == ""
