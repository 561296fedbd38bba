"""Which of the weights in a checkpoint are taken: those that fit, and an average over the training before others.

Where two sets are as good as each other and not the same, neither is taken. What was taken is said, with what else
there is and how to take that.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from graphprune.formats.entries import AVERAGED, OF_TRAINING, Checkpoint, Keys, StateDict, is_averaged
from graphprune.formats.fitting import Fit, Network, common_wrappers, some
from graphprune.formats.pickles import needs_trust
from graphprune.passes.errors import ModelLoadError

__all__ = ["any_weights", "fitting_weights", "whole_network"]

logger = logging.getLogger("graphprune")

_Weights = TypeVar("_Weights")


def whole_network(checkpoint: Checkpoint) -> nn.Module:
    """The best of the networks that were pickled as they are.

    Raises:
        ModelLoadError: several are as good as each other.
    """
    found = [(keys, module, module.state_dict()) for keys, module in checkpoint.modules]
    keys, others = _best(checkpoint, [(keys, state) for keys, _, state in found])
    _say_others(checkpoint, keys, others)
    return next(module for own, module, _ in found if own == keys)


def fitting_weights(checkpoint: Checkpoint, model: nn.Module, arch: str) -> StateDict:
    """The best of the sets of weights that fit a network, by its names.

    Args:
        checkpoint: where they are.
        model: the network.
        arch: what it is called.

    Raises:
        ModelLoadError: none fits, or several fit that are as good as each other.
    """
    network = Network(model)
    states = [*checkpoint.states, *((keys, module.state_dict()) for keys, module in checkpoint.modules)]
    every = [fit for keys, state in states for fit in network.fits(keys, state)]
    whole = [fit for fit in every if fit.is_whole]
    if not whole:
        raise _no_fit(checkpoint, every, arch)
    fits = {fit.keys: fit for fit in (*whole, *_completed(checkpoint, every, whole))}
    keys, others = _best(checkpoint, [(fit.keys, fit.state) for fit in fits.values()])
    taken = fits[keys]
    _say_taken(checkpoint, () if others else keys[: len(keys) - taken.prefix.count(".")], taken.prefix)
    if taken.wrappers:
        logger.info("%s: took what wrapped parts out of the names: %s", checkpoint.path, ", ".join(taken.wrappers))
    _say_others(checkpoint, keys, others)
    if checkpoint.rank(keys) < AVERAGED:
        _warn_of_averages(checkpoint, taken, [*fits])
    if taken.beside and not others:
        logger.info("%s: left out what does not begin with %r: %s", checkpoint.path, taken.prefix, some(taken.beside))
    if taken.counters:
        logger.info("%s: left out counters that are no weights: %s", checkpoint.path, some(taken.counters))
    return taken.state


def any_weights(checkpoint: Checkpoint) -> StateDict:
    """The best of the sets of weights, whatever network they are of.

    Raises:
        ModelLoadError: several are as good as each other.
    """
    keys, _ = _best(checkpoint, checkpoint.states)
    state, prefix = common_wrappers(next(state for own, state in checkpoint.states if own == keys))
    _say_taken(checkpoint, keys, prefix)
    return state


def _best(checkpoint: Checkpoint, found: Sequence[tuple[Keys, Mapping[str, Tensor]]]) -> tuple[Keys, list[Keys]]:
    """Where the best weights are, and where others."""
    best = max(checkpoint.rank(keys) for keys, _ in found)
    (keys, state), *equals = [(keys, state) for keys, state in found if checkpoint.rank(keys) == best]
    if rivals := [other for other, theirs in equals if not _are_same(state, theirs)]:
        names = [checkpoint.name(rival) for rival in (keys, *rivals)]
        raise ModelLoadError(
            f"{checkpoint.path} holds several sets of weights, and nothing says which to take: {', '.join(names)}; "
            f'choose with `entry="{names[0]}"`'
        )
    return keys, [other for other, _ in found if checkpoint.rank(other) < best]


def _are_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


def _completed(checkpoint: Checkpoint, every: Iterable[Fit], whole: Iterable[Fit]) -> list[Fit]:
    """Averages that were kept of parameters alone, with the buffers of the weights that they are an average of."""
    plain = [fit for fit in whole if checkpoint.rank(fit.keys) < AVERAGED]
    found = [fit for fit in every if fit.lacks_buffers_alone and checkpoint.rank(fit.keys) == AVERAGED]
    if len(plain) != 1:
        return []
    for fit in found:
        names = (checkpoint.name(fit.keys), checkpoint.name(plain[0].keys))
        logger.info("%s: the averaged weights %r come without buffers; they get those of %r", checkpoint.path, *names)
    return [fit.completed(plain[0]) for fit in found]


def _no_fit(checkpoint: Checkpoint, every: Sequence[Fit], arch: str) -> ModelLoadError:
    closest = max(every, key=lambda fit: (fit.matched, checkpoint.rank(fit.keys), -len(fit.unknown)))
    if not closest.matched and checkpoint.foreign:
        return needs_trust(checkpoint.path, checkpoint.foreign)
    which = f"entry {checkpoint.name(closest.keys)}" if closest.keys or checkpoint.above else "it"
    return ModelLoadError(f'{checkpoint.path} does not fit `arch="{arch}"`: {which} {closest.problems()}')


def _say_taken(checkpoint: Checkpoint, keys: Keys, prefix: str) -> None:
    if keys:
        logger.info("%s: took the entry %r of the checkpoint", checkpoint.path, checkpoint.name(keys))
    if prefix:
        logger.info("%s: took the prefix %r off the names of the parameters", checkpoint.path, prefix)


def _say_others(checkpoint: Checkpoint, keys: Keys, others: Sequence[Keys]) -> None:
    """Say which of several sets of weights was taken, and how to take another."""
    if others:
        names = [checkpoint.name(other) for other in others]
        logger.warning(
            '%s: took %r%s, and not %s: `entry="%s"` takes that',
            *(checkpoint.path, checkpoint.name(keys)),
            ", the average over the training" if checkpoint.rank(keys) == AVERAGED else "",
            *(" or ".join(map(repr, names)), names[0]),
        )


def _warn_of_averages(checkpoint: Checkpoint, taken: Fit, fits: Sequence[Keys]) -> None:
    """Say that there are averaged weights, too, which could not be taken."""
    within = {
        _up_to_average((*taken.keys[: -taken.prefix.count(".") or None], *name.split("."))) for name in taken.beside
    }
    found = {_up_to_average(entry.keys) for entry in checkpoint.entries if checkpoint.rank(entry.keys) != OF_TRAINING}
    missed = sorted(checkpoint.name(keys) for keys in within | found if keys and keys not in map(_up_to_average, fits))
    if missed:
        logger.warning(
            "%s: holds an average over the training, %s, which does not fit or would have to be unpickled; the weights "
            "taken, %r, are not averaged",
            *(checkpoint.path, some(tuple(missed)), checkpoint.name(taken.keys)),
        )


def _up_to_average(keys: Keys) -> Keys:
    """The first of the keys up to the one that speaks of an average; none if no one does."""
    return next((keys[: at + 1] for at, key in enumerate(keys) if is_averaged([key])), ())
