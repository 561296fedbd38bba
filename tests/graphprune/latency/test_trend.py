import numpy as np
import pytest

from graphprune.latency.trend import fit_trend, merged

DENSE = 3.0


def network(power: float, disturbed: int = 0) -> list[dict]:
    """Allocations of ten equal layers; what a layer takes beyond its sum depends on how much all of them have."""
    rng = np.random.default_rng(0)
    taken = []
    for index in range(40):
        lengths = 64.0 * np.exp(rng.uniform(-2.5, 0.0)) * rng.uniform(0.95, 1.0, 10)
        total = lengths.sum() / 640
        factor = total ** (power - 1) * (4.0 if index < disturbed else 1.0)
        taken.append({"layer": [((float(n),), DENSE * n / 640 * factor) for n in lengths]})
    return taken


@pytest.mark.parametrize("power", [1.0, 1.2])
def test_what_a_sum_does_not_know_is_found(power):
    # All layers of an allocation are about as wide, so the widths tell most of it and the trend is what they do not.
    start, found = fit_trend(network(power), 8, DENSE)
    assert found == pytest.approx(1.0, abs=0.06)
    assert start == pytest.approx(0.0, abs=0.06)


def test_layers_of_small_networks_are_quicker_at_the_same_width():
    rng = np.random.default_rng(1)
    taken = []
    for _ in range(40):
        own, others = 64.0 * np.exp(rng.uniform(-2.5, 0.0, 2))
        total = (own + 9 * others) / 640
        taken.append(
            {"own": [((own,), own / 640 * total**0.2)], "others": [((others,), 9 * others / 640 * total**0.2)]}
        )
    start, power = fit_trend(taken, 8, 1.0)
    assert power > 1.01
    sums = np.array([0.05, 1.0])
    small, large = np.exp(start) * sums**power / sums
    assert small < 1.0 <= large


def test_single_disturbed_measurements_do_not_move_it():
    calm, disturbed = fit_trend(network(1.0), 8, DENSE), fit_trend(network(1.0, disturbed=3), 8, DENSE)
    assert disturbed == pytest.approx(calm, abs=0.1)


def test_too_few_allocations_have_none():
    assert fit_trend(network(1.2)[:2], 8, DENSE) == (0.0, 1.0)
    assert fit_trend([{"fixed": [((), 1.0)]}] * 6, 8, DENSE) == (0.0, 1.0)


def test_measurements_are_put_together_by_kind():
    one, two = {"a": [((1.0,), 1.0)]}, {"a": [((2.0,), 2.0)], "b": [((), 3.0)]}
    assert merged([one, two]) == {"a": [((1.0,), 1.0), ((2.0,), 2.0)], "b": [((), 3.0)]}
