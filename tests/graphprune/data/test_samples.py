"""Samples of several inputs: drawn, parted and batched together."""

import numpy as np

from graphprune.data.samples import samples_of_arrays

ARRAYS = {"a": np.arange(10.0).reshape(5, 2), "b": np.arange(15).reshape(3, 5), "c": np.float32([7])}


def samples():
    return samples_of_arrays(ARRAYS, [0, 1, None], 5, "here")


def test_a_batch_has_the_same_samples_of_every_input():
    a, b, c = samples().batch(np.array([4, 1]))
    assert a.tolist() == [[8, 9], [2, 3]]
    assert b.tolist() == [[4, 1], [9, 6], [14, 11]]
    assert c is ARRAYS["c"]
    assert samples().shapes == {"a": (0, 2), "b": (3, 0), "c": (1,)}


def test_subsets_of_subsets():
    part = samples().subset(np.array([4, 2, 0])).subset(np.array([2, 0]))
    assert (len(part), part.name) == (2, "here")
    assert part.batch(np.array([0, 1]))[0].tolist() == [[0, 1], [8, 9]]


def test_batches_end_with_a_smaller_one_or_are_filled_up():
    sizes = [len(a) for a, _, _ in samples().batches(2)]
    filled = [a[:, 0].tolist() for a, _, _ in samples().batches(3, fixed=True)]
    assert (sizes, filled) == ([2, 2, 1], [[0, 2, 4], [6, 8, 0]])


def test_a_sample_is_drawn_at_random_and_the_same_again():
    drawn = [next(samples().sample(3, seed).batches(5))[0][:, 0].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 3
    assert len(samples().sample(99, 0)) == 5


def test_a_part_is_held_out_as_of_images_and_another_order_is_seen():
    numbers = samples_of_arrays({"a": np.arange(20.0), "b": np.arange(40.0).reshape(20, 2)}, [0, 0], 20, "numbers")
    rest, held = numbers.split(0.2, seed=1)
    first, second = rest.batch(slice(0, None)), held.batch(slice(0, None))
    assert sorted(np.concatenate([first[0], second[0]])) == list(range(20))
    np.testing.assert_array_equal(first[1][:, 0], first[0] * 2)
    assert numbers.checksum() == numbers.subset(np.arange(20)).checksum()
    assert len({source.checksum() for source in (numbers, rest, numbers.subset(np.arange(20)[::-1]))}) == 3
