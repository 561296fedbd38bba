"""Which tensors of a state dict are which of a network's: by name, and by name without what was put before it.

    Lightning, a task's own class       model.  backbone.  encoder.net.
    DataParallel, AveragedModel         module.
    torch.compile, FSDP, checkpointing  _orig_mod.  _fsdp_wrapped_module.  _checkpoint_wrapped_module.

Something is taken off when the names then fit the network, and else not. The parts of the last two lines may also stand
inside of names, where a part of the network alone was wrapped.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from graphprune.formats.entries import StateDict

__all__ = ["Fit", "Network", "common_wrappers", "some"]

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: Buffers that profilers (thop) leave in networks, and counters of normalization, which have no part in inference.
_COUNTERS = ("total_ops", "total_params", "num_batches_tracked")
_MANY = 4  # tied parameters are stored once, so that not all names need to be there
_MOST_NAMED = 3


@dataclass(frozen=True)
class Fit:
    """Tensors under a network's names, and what is wrong with them.

    Attributes:
        keys: of the entry they come from, and what was taken off their names.
        prefix: that alone, with a dot at its end; "" if nothing was.
        state: by the network's names.
        wrappers: what was taken out of the midst of names.
        counters: names of counters that were left out.
        beside: names of the entry that do not begin with the prefix; counters do not count.
        missing: names that the network has and these do not; without what may be missing.
        missing_buffers: those of them that are no parameters.
        unknown: names that the network does not have.
        wrong: tensors of other shapes than the network's, in words.
        matched: number of tensors that are as the network's.
    """

    keys: tuple[str, ...]
    prefix: str
    state: StateDict
    wrappers: tuple[str, ...]
    counters: tuple[str, ...]
    beside: tuple[str, ...]
    missing: tuple[str, ...]
    missing_buffers: tuple[str, ...]
    unknown: tuple[str, ...]
    wrong: tuple[str, ...]
    matched: int

    @property
    def name(self) -> str:
        """What the entry is called, with the prefix."""
        return ".".join(self.keys)

    @property
    def is_whole(self) -> bool:
        """Do they fill the network?"""
        return not (self.missing or self.unknown or self.wrong)

    @property
    def lacks_buffers_alone(self) -> bool:
        """Are all parameters there, as in averages that are kept of parameters?"""
        return bool(self.missing) and self.missing == self.missing_buffers and not (self.unknown or self.wrong)

    def completed(self, other: "Fit") -> "Fit":
        """These with the buffers of another set that fills the network."""
        lacking = {name: other.state[name] for name in self.missing if name in other.state}
        return replace(self, state={**self.state, **lacking}, missing=(), missing_buffers=())

    def problems(self) -> str:
        """What is wrong, in words."""
        found = (("lacks", self.missing), ("has the unknown", self.unknown), ("has other shapes:", self.wrong))
        return "; it ".join(f"{what} {some(names)}" for what, names in found if names)


class Network:
    """A network's own names and shapes."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def fits(self, keys: tuple[str, ...], state: StateDict) -> list[Fit]:
        """Return what may be the network's tensors among those of an entry: first what fits best.

        All sets that fill the network are among them; what does not is there for its error.
        """
        found = [
            self._fit(keys, prefix, names, state)
            for names in self._spellings(state)
            for prefix in self._prefixes(names)
        ]
        found.sort(key=lambda fit: (not fit.is_whole, not fit.lacks_buffers_alone, -fit.matched))
        by_name: dict[str, Fit] = {}
        for fit in found:
            by_name.setdefault(fit.name, fit)
        return list(by_name.values())

    def _spellings(self, state: StateDict) -> Iterator[dict[str, str]]:
        """Names in the network's spelling -> names in the file: as they are, and with wrappers of parts taken out."""
        yield {name: name for name in state}
        plain = {name: _without_wrappers(name) for name in state}
        if any(name != short for name, short in plain.items()) and len(set(plain.values())) == len(plain):
            yield {self._unwrapped.get(short, short): name for name, short in plain.items()}

    @cached_property
    def _unwrapped(self) -> Mapping[str, str]:
        """The network's names without wrappers -> as they are; a network may have a part of that name itself."""
        plain = {_without_wrappers(name): name for name in self._own}
        return plain if len(plain) == len(self._own) else {}

    def _prefixes(self, names: Mapping[str, str]) -> list[str]:
        """What stands before names of the network, where it does so before many; and nothing."""
        found: Counter[str] = Counter()
        for name in names:
            parts = name.split(".")
            found.update(
                ".".join((*parts[:at], "")) for at in range(1, len(parts)) if ".".join(parts[at:]) in self._own
            )
        return ["", *(prefix for prefix, times in found.items() if _MANY * times >= len(self._parameters))]

    def _fit(self, keys: tuple[str, ...], prefix: str, names: Mapping[str, str], state: StateDict) -> Fit:
        given = {n.removeprefix(prefix): state[origin] for n, origin in names.items() if n.startswith(prefix)}
        counters = {name for name in given if name not in self._own and _counts(name)}
        held = {name: value for name, value in given.items() if name not in counters}
        # A parameter that two modules share is stored once; old files have no counters in BatchNorm.
        shared = {self._own[name].data_ptr() for name in held if name in self._own and self._own[name].numel()}
        missing = tuple(
            name
            for name, value in self._own.items()
            if name not in held and value.data_ptr() not in shared and not name.endswith(".num_batches_tracked")
        )
        wrong = tuple(
            f"{name} is {tuple(value.shape)} and must be {tuple(self._own[name].shape)}"
            for name, value in held.items()
            if name in self._own and value.shape != self._own[name].shape
        )
        return Fit(
            keys=(*keys, *prefix.split(".")[:-1]),
            prefix=prefix,
            state=held,
            wrappers=tuple(
                w for w in _WRAPPERS if any(w in o.split(".") and w not in n.split(".") for n, o in names.items())
            ),
            counters=tuple(sorted(counters)),
            beside=tuple(n for n, o in names.items() if not n.startswith(prefix) and state[o].dim() and not _counts(n)),
            missing=missing,
            missing_buffers=tuple(name for name in missing if name not in self._parameters),
            unknown=tuple(name for name in held if name not in self._own),
            wrong=wrong,
            matched=sum(name in self._own for name in held) - len(wrong),
        )


def common_wrappers(state: StateDict) -> tuple[StateDict, str]:
    """A state dict of no known network without the wrappers that all its names begin with, and these."""
    taken = ""
    while state and (first := next(iter(state)).partition(".")[0]) in _WRAPPERS:
        if not all(name.startswith(f"{first}.") for name in state):
            break
        state, taken = {name.removeprefix(f"{first}."): value for name, value in state.items()}, f"{taken}{first}."
    return state, taken


def some(names: tuple[str, ...]) -> str:
    """A few of these names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
