"""The sets of weights in a checkpoint, by name, and how much speaks for each.

Trainers keep more than one: the weights as the last step left them, an average over the steps (EMA, SWA), which is what
they evaluate and publish, the best so far, those of a teacher. A set goes by the keys that lead to it, joined by dots.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.formats.pickles import Foreign
from graphprune.passes.errors import UsageError

__all__ = ["AVERAGED", "OF_TRAINING", "PLAIN", "Checkpoint", "Entry", "StateDict", "is_averaged"]

StateDict = dict[str, Tensor]
Keys = tuple[str, ...]

#: Ranks: an average over the training; anything else; what is there to go on training with.
AVERAGED, PLAIN, OF_TRAINING = 2, 1, 0
#: The name of what the file is as a whole.
TOP = "."

_DEEPEST = 6
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_AVERAGES = ("ema", "swa", "avg", "average", "averaged", "shadow", "polyak")
_TRAINING = ("optimizer", "optimizers", "callbacks", "loops", "scheduler", "schedulers", "scaler")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)


@dataclass(frozen=True)
class Entry:
    """What may be weights in a checkpoint.

    Attributes:
        keys: that lead to them.
        held: a state dict, a whole network, or the stand-in for an object that was not unpickled.
    """

    keys: Keys
    held: StateDict | nn.Module | Foreign


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: of the file.
        held: what was read from it, or the part that was asked for.
        above: keys that lead to that part.
    """

    path: Path
    held: Any
    above: Keys = ()

    @cached_property
    def entries(self) -> list[Entry]:
        """All that may be weights, from the top down."""
        return list(_entries(self.held, ()))

    @property
    def states(self) -> list[tuple[Keys, StateDict]]:
        """The state dicts among them."""
        return [(entry.keys, entry.held) for entry in self.entries if isinstance(entry.held, dict)]

    @property
    def modules(self) -> list[tuple[Keys, nn.Module]]:
        """The whole networks among them, without what was put around them to train them."""
        return [(entry.keys, entry.held) for entry in self.entries if isinstance(entry.held, nn.Module)]

    @property
    def foreign(self) -> list[str]:
        """Classes of the objects that were not unpickled."""
        return sorted({entry.held.class_name for entry in self.entries if isinstance(entry.held, Foreign)})

    def name(self, keys: Keys) -> str:
        """What weights are called from outside, by the keys that lead to them here."""
        return ".".join((*self.above, *keys)) or TOP

    def rank(self, keys: Keys) -> int:
        """How much speaks for the weights that these keys lead to: AVERAGED, PLAIN or OF_TRAINING.

        Two trainers store the average as the state dict, and what it was made from beside it:

        * Lightning's WeightAveraging (2.6): that is `current_model_state`;
        * mmengine's EMAHook (0.10): it is `ema_state_dict`, which has a counter of "steps".
        """
        top = keys[0] if keys else ""
        if top in self._raw or any(word.lower() in _TRAINING for word in _WORDS.findall(top)):
            return OF_TRAINING
        return AVERAGED if is_averaged(keys) or (self._raw and top == "state_dict") else PLAIN

    @property
    def _raw(self) -> tuple[str, ...]:
        """Where weights are that the state dict of the checkpoint is an average of."""
        if not isinstance(self.held, Mapping) or "state_dict" not in self.held:
            return ()
        if "current_model_state" in self.held:
            return ("current_model_state",)
        other = self.held.get("ema_state_dict")
        return ("ema_state_dict",) if isinstance(other, Mapping) and "steps" in other else ()

    def part(self, name: str) -> "Checkpoint":
        """The part of a name.

        Args:
            name: keys joined by dots. The last of them may be the beginning of names in a state dict; then what is
                found are the tensors of these names, without that beginning. TOP stands for those without a key.

        Raises:
            UsageError: there is nothing of that name.
        """
        if name == TOP and isinstance(self.held, Mapping):
            return Checkpoint(self.path, {key: x for key, x in self.held.items() if isinstance(x, Tensor)})
        found = _walk(self.held, tuple(name.split(".")))
        if found is None:
            known = [self.name(entry.keys) for entry in self.entries if not isinstance(entry.held, Foreign)]
            what = f"sets of weights in it are {', '.join(known)}" if known else "it holds no weights"
            raise UsageError(f"{self.path} has no entry {name}: {what}")
        return Checkpoint(self.path, *found)

    def describe(self) -> str:
        """What it is, in a few words."""
        if isinstance(self.held, Mapping):
            names = ", ".join(map(str, list(self.held)[:5]))
            return f"a dict with the entries {names}" if names else "an empty dict"
        return f"a {self.held.class_name if isinstance(self.held, Foreign) else type(self.held).__name__}"


def is_averaged(keys: Sequence[str]) -> bool:
    """Do keys, or the beginnings of names, say that weights are an average over the training?"""
    return any(word.lower() in _AVERAGES for key in keys for word in _WORDS.findall(key))


def _entries(held: Any, keys: Keys) -> Iterator[Entry]:
    if isinstance(held, nn.Module):
        held = _unwrapped(held)
        if any(True for _ in held.parameters()):
            yield Entry(keys, held)
    elif isinstance(held, Foreign):
        yield Entry(keys, held)
    elif isinstance(held, Mapping):
        state = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
        if any(value.dim() for value in state.values()):
            yield Entry(keys, state)
        if len(keys) < _DEEPEST:
            for key, value in held.items():
                yield from _entries(value, (*keys, str(key)))
    elif isinstance(held, list | tuple) and held and all(isinstance(value, Tensor) for value in held):
        yield Entry(keys, {str(at): value for at, value in enumerate(held)})


def _walk(held: Any, keys: Keys) -> tuple[Any, Keys] | None:
    """What keys lead to, and these, in which a key with dots is one."""
    if not keys:
        return held, ()
    if not isinstance(held, Mapping):
        return None
    by_name = {str(key): value for key, value in held.items()}
    for length in range(len(keys), 0, -1):
        first, rest = ".".join(keys[:length]), keys[length:]
        below = _walk(by_name[first], rest) if first in by_name and not isinstance(by_name[first], Tensor) else None
        if below is not None:
            return below[0], (first, *below[1])
    prefix = ".".join((*keys, ""))
    within = {name.removeprefix(prefix): value for name, value in by_name.items() if name.startswith(prefix)}
    return (within, keys) if within else None


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network in what is put around one to train it, or to compile it."""
    while True:
        if isinstance(module, _WRAPPERS):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module
