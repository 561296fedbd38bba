"""What rounding moves in a model's outputs: seen by moving its inputs by some units of their last places.

    moved = rtol / step * |f(x (1 + step * e)) - f(x)|,   e = -1 or 1 at random

A difference that is beyond the tolerance of its own small scale may be what another order of sums makes of large
numbers that nearly cancel. How much that is depends on the network, and the network tells: a change of its inputs by
`step` passes through the same sums, and makes all of them round anew. A step of a hundredth of the tolerance shows what
rounds; several of the tolerance itself show what is small beside something that it is added to, and so hardly moves.

Source: Higham 2002, "Accuracy and stability of numerical algorithms", section 1.5: backward error.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from graphprune.verification.closeness import Judge

__all__ = ["allow_rounding", "shaken"]

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]

_DRAWS = 3  # of the larger step: one alone may by chance leave a number where it is
_SHARE = 1e-2  # of the tolerance: the smaller step
_UNITS = 4  # of the last place: the least that is no rounding itself
#: How many times what other kernels make of the same numbers is still rounding.
_KERNELS = 10.0


def allow_rounding(
    judges: Sequence[Judge],
    run: Run,
    inputs: Sequence[np.ndarray],
    rtol: float,
    unit: float,
    *,
    again: Run | None = None,
) -> None:
    """Let judges tolerate what rounding moves in each output.

    Args:
        judges: of the outputs, in the order in which `run` gives them.
        run: the model.
        inputs: some samples.
        rtol: the relative tolerance.
        unit: the last place of the coarsest numbers that it computes with, relative to them.
        again: the same model with other kernels, if there are some.
    """
    expected = run(inputs)
    for factor, found in _moved(run, inputs, rtol, unit, again):
        for judge, a, b in zip(judges, expected, found, strict=True):
            if a.shape == b.shape and np.issubdtype(a.dtype, np.floating):
                with np.errstate(invalid="ignore", over="ignore"):
                    moved = factor * np.abs(a.astype(np.float64) - b)
                judge.allow(moved, rows=len(inputs[0]) if inputs and inputs[0].ndim else None)


def _moved(
    run: Run, inputs: Sequence[np.ndarray], rtol: float, unit: float, again: Run | None
) -> Iterator[tuple[float, list[np.ndarray]]]:
    """Outputs that differ from those on `inputs` by rounding, and how many times as much is tolerated."""
    if again is not None:
        yield _KERNELS, again(inputs)
    if not any(np.issubdtype(array.dtype, np.floating) for array in inputs):
        return
    rng = np.random.default_rng(0)
    small = max(_SHARE * rtol, _UNITS * unit)
    for step in (small, *[max(rtol, small)] * _DRAWS):
        yield rtol / step, run(shaken(inputs, step, rng))


def shaken(inputs: Sequence[np.ndarray], step: float, rng: np.random.Generator) -> list[np.ndarray]:
    """The inputs, every floating-point number changed by a share `step` up or down; other ones as they are."""
    found = []
    for array in inputs:
        if not np.issubdtype(array.dtype, np.floating):
            found.append(array)
            continue
        signs = rng.integers(0, 2, array.shape) * 2 - 1
        found.append((array + array * (step * signs)).astype(array.dtype))
    return found
