"""The one table of operator rules: where both front ends look an operator up.

Our own rules fill it when it is made. Rules for operators of somebody else's are added to it by `register_rule`, when
Python imports the module that calls it. Installed packages name such a module as an entry point of the group
`graphprune.rules`; it is imported when an operator is met that has no rule otherwise, and not before.
"""

import logging
from collections.abc import Iterable, Iterator
from importlib import metadata

from graphprune.passes.channels.operators import Binding, Rule
from graphprune.passes.errors import RuleError

logger = logging.getLogger("graphprune")

#: Entry points that name a module with rules.
GROUP = "graphprune.rules"

Found = tuple[Rule, Binding]

#: Libraries of onnxruntime's kernels that rules in a table name, once a binding.
_LIBRARIES: list[str] = []


def kernel_libraries() -> list[str]:
    """Libraries of onnxruntime's kernels for operators of other domains, each once; needs no rule to be imported."""
    return list(dict.fromkeys(_LIBRARIES))


class RuleTable:
    """Rules by the operators that they are for.

    Keys are an ATen operator (`conv2d`, or `max.other` for one overload), one of another torch library
    (`mylib::scaled`, `mylib::scaled.default`), an ONNX operator (`Conv`), or one of another domain
    (`com.example.Scaled`).

    Attributes:
        aten: torch operator -> rule and how it spells the arguments.
        onnx: ONNX operator -> the same.
    """

    def __init__(self, rules: Iterable[Rule] = (), group: str | None = None) -> None:
        """`group`: entry points whose modules are imported when an operator without a rule is met."""
        self.aten: dict[str, Found] = {}
        self.onnx: dict[str, Found] = {}
        self._group = group
        for rule in rules:
            self.add(rule)

    def add(self, rule: Rule) -> None:
        """Add a rule under all of its operators, or under none.

        Raises:
            RuleError: one of them has a rule already.
        """
        for table, bindings in ((self.aten, rule.aten), (self.onnx, rule.onnx)):
            for key in bindings:
                held = table.get(key)
                if held is not None:
                    raise RuleError(f"two rules for {key}: '{held[0].name}' and '{rule.name}'")
        self.aten.update({key: (rule, binding) for key, binding in rule.aten.items()})
        self.onnx.update({key: (rule, binding) for key, binding in rule.onnx.items()})
        _LIBRARIES.extend(binding.kernels for binding in rule.onnx.values() if binding.kernels)

    def remove(self, rule: Rule) -> None:
        """Take a rule out again; nothing happens where it is not in."""
        for table in (self.aten, self.onnx):
            for key in [key for key, (held, _) in table.items() if held is rule]:
                _, binding = table.pop(key)
                if binding.kernels:
                    _LIBRARIES.remove(binding.kernels)

    def torch_rule(self, *keys: str) -> Found | None:
        """The rule of a torch operator, by the first of its keys that has one."""
        return self._find(self.aten, keys)

    def onnx_rule(self, *keys: str) -> Found | None:
        """The rule of an ONNX operator, by the first of its keys that has one."""
        return self._find(self.onnx, keys)

    def load_installed(self) -> bool:
        """Import the rules of installed packages, once in a process; whether that brought any.

        Packages whose rules cannot be imported are named in the log: their operators count as unknown.
        """
        group, self._group = self._group, None
        if group is None:
            return False
        before = len(self.aten) + len(self.onnx)
        for entry in metadata.entry_points(group=group):
            package = entry.dist.name if entry.dist is not None else entry.name
            try:
                entry.load()
            except (Exception, SystemExit) as error:  # somebody else's code: it may raise anything
                reason = " ".join(str(error).split()) or type(error).__name__
                logger.warning("the operator rules of %s (%s) are left out: %s", package, entry.value, reason)
            else:
                logger.info("operator rules of %s (%s)", package, entry.value)
        return len(self.aten) + len(self.onnx) > before

    def _find(self, table: dict[str, Found], keys: tuple[str, ...]) -> Found | None:
        found = next(_held(table, keys), None)
        if found is None and self.load_installed():
            found = next(_held(table, keys), None)
        return found


def _held(table: dict[str, Found], keys: tuple[str, ...]) -> Iterator[Found]:
    return (table[key] for key in keys if key in table)
