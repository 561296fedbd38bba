import pytest

from graphprune.cli import progress
from graphprune.search import Trial


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_how_long_it_will_take_is_said_now_and_then(clock, capsys):
    lines = progress._Lines()
    lines.stage("training")
    for step in range(5, 21):  # a resumed run
        lines.step(step, 100, 0.5, {"macs": 0.9}, "sparsify")
        clock[0] += 4
    said = capsys.readouterr().err.splitlines()
    assert said == ["training ...", "  13 of 100, sparsify, loss 0.500, macs 0.900, about 6 min left"]


def test_a_stage_that_counts_twice_begins_anew(clock, capsys):
    lines = progress._Lines()
    lines.stage("searching an allocation")
    for _ in range(2):
        for done in range(1, 21):
            lines.evaluation(done, 20, Trial(0.5, 0.1))
            clock[0] += 2
        clock[0] += 25  # between the searches of a family
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["  16 of 20, best so far: agreement 0.5000, about 8 s left"] * 2
