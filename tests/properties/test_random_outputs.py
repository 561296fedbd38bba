"""`verify` finds an error in any small part of any output, and takes nothing for one that is rounding."""

import numpy as np
import pytest
from random_outputs import inputs_for, random_graph, with_error
from same_function import WAYS

from graphprune.verification.verify import compare

QUICK, MANY = range(3000, 3030), range(500)


def is_found(seed):
    """Whether an error in a graph is found; what it is if it is not."""
    model, places = random_graph(seed)
    wrong = with_error(model, places, seed)
    if wrong is None:
        return ""
    found = compare(model.SerializeToString(), wrong[0].SerializeToString(), inputs_for(model))
    return f"seed {seed}: {wrong[1]} is not found" if found.equal else ""


def is_alarm(seed):
    """Whether another graph for the same function is taken for a wrong one; what is said if it is."""
    model, _ = random_graph(seed)
    way = WAYS[seed % len(WAYS)]
    other = way(model, np.random.default_rng(seed))
    found = compare(model.SerializeToString(), other.SerializeToString(), inputs_for(model))
    return "" if found.equal else f"seed {seed}, {way.__name__}: {found.worst}"


def test_errors_in_small_parts_are_found():
    assert [said for seed in QUICK if (said := is_found(seed))] == []


def test_what_tools_make_of_a_file_is_no_error():
    assert [said for seed in QUICK if (said := is_alarm(seed))] == []


@pytest.mark.slow
def test_errors_in_small_parts_of_many_graphs_are_found():
    assert [said for seed in MANY if (said := is_found(seed))] == []


@pytest.mark.slow
def test_what_tools_make_of_many_files_is_no_error():
    assert [said for seed in MANY if (said := is_alarm(seed))] == []


def test_every_way_makes_another_file_of_some_graph():
    contents = [(random_graph(seed)[0], np.random.default_rng(seed)) for seed in range(4)]
    for way in WAYS[1:]:
        assert any(way(m, rng).SerializeToString() != m.SerializeToString() for m, rng in contents), way.__name__


def test_the_errors_differ_and_most_graphs_take_one():
    said = [wrong[1] for seed in range(8) if (wrong := with_error(*random_graph(seed), seed)) is not None]
    assert len(set(said)) >= 6
