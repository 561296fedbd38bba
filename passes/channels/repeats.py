"""Operators that compute what another has computed before: runtimes merge them, so their work counts once.

A classifier that stands behind several dropouts is such a case: in inference all of them read the same.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from graphprune.passes.channels.operators import Op, Rule, is_random
from graphprune.passes.channels.value import Value

#: Numbers up to so many tell literals apart; larger ones are told apart by where they come from.
_FEW = 1 << 10


class Repeats:
    """What has been computed so far, by operator and operands."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[Value, Hashable]] = {}  # holds the values, so that ids stay theirs
        self._results: dict[Hashable, list[Hashable]] = {}

    def see(self, rule: Rule | None, op: Op, results: list[Value]) -> bool:
        """Note an operator and its results; whether they are those of one that was seen before."""
        if is_random(op.kind):
            return False
        if _gives_what_it_reads(rule, op):
            self._set(results[0], self._name(op.value("input")))
            return False
        form = (op.kind, op.out_shapes, self._form(op.inputs), self._form(op.attrs))
        names = [self._name(value) for value in results]
        known = self._results.setdefault(form, names)
        if known is names:
            return False
        for value, name in zip(results, known, strict=True):
            self._set(value, name)
        return True

    def forget(self, value: Value) -> None:
        """A value is written to: from now on it is another one."""
        self._set(value, object())

    def _set(self, value: Value, name: Hashable) -> None:
        self._names[id(value)] = (value, name)

    def _name(self, value: Value) -> Hashable:
        """What two values have in common that are the same."""
        if value.parameter is not None:
            return ("parameter", value.parameter)
        if value.data is not None and value.constant and value.data.size <= _FEW:
            return self._form(value.data)
        return self._names.setdefault(id(value), (value, object()))[1]

    def _form(self, item: Any) -> Hashable:
        if isinstance(item, Value):
            return self._name(item)
        if isinstance(item, np.ndarray):
            return ("numbers", item.shape, str(item.dtype), item.tobytes())
        if isinstance(item, Mapping):
            return tuple((str(key), self._form(item[key])) for key in sorted(item, key=str))
        if isinstance(item, list | tuple):
            return tuple(self._form(one) for one in item)
        return item if isinstance(item, Hashable) else id(item)


def _gives_what_it_reads(rule: Rule | None, op: Op) -> bool:
    """A copy, or a dropout outside of training."""
    if rule is not None and rule.name == "identity":
        return True
    is_dropout = rule is not None and "dropout" in op.kind.lower()
    return is_dropout and not op.attrs.get("train") and "is_test" not in op.attrs and op.optional("third") is None
