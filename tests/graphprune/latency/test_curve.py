import pytest

from graphprune.latency.curve import Curve


def line(n: float) -> float:
    return 2e-6 * n + 1e-6


def test_what_was_measured_is_what_is_predicted():
    curve = Curve([((float(n),), line(n)) for n in range(8, 72, 8)], 8)
    for n in (8, 32, 64):
        assert curve.at((float(n),)) == pytest.approx(line(n), rel=0.02)


def test_between_measurements_lies_what_fits_them():
    curve = Curve([((float(a), float(b)), 1e-7 * a * b) for a in (8, 32, 64) for b in (8, 32, 64)], 8)
    assert curve.at((48.0, 16.0)) == pytest.approx(1e-7 * 48 * 16, rel=0.05)


def test_the_median_of_several_measurements_counts():
    curve = Curve([((16.0,), t) for t in (1e-6, 1.1e-6, 9e-6)] + [((32.0,), 2.2e-6)], 8)
    assert curve.at((16.0,)) == pytest.approx(1.1e-6, rel=0.05)


def test_a_width_beside_the_step_has_a_time_of_its_own():
    samples = [((float(n),), line(n)) for n in (8, 16, 32)] + [((float(n),), 3 * line(n)) for n in (9, 15, 31)]
    curve = Curve(samples, 8)
    assert curve.at((15.0,)) > 2.5 * line(15)
    assert curve.at((16.0,)) == pytest.approx(line(16), rel=0.05)


def test_what_is_gone_takes_no_time_unless_something_was_seen_to_remain():
    full = [((8.0, 8.0), 1e-6), ((16.0, 16.0), 2e-6)]
    assert Curve(full, 8).at((0.0, 8.0)) == 0.0
    rest = [((0.0, 8.0), 1e-7), ((0.0, 16.0), 2e-7)]
    assert Curve(full + rest, 8).at((0.0, 16.0)) == pytest.approx(2e-7, rel=0.05)


def test_without_lengths_the_time_is_constant():
    assert Curve([((), 3e-6), ((), 3e-6)], 8).at(()) == pytest.approx(3e-6)
