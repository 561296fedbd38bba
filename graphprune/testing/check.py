"""A rule under all four oracles."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphprune.passes.channels.operators import Rule
from graphprune.passes.channels.register import Registration
from graphprune.passes.errors import RuleError, UsageError
from graphprune.testing import oracles
from graphprune.testing.example import Example
from graphprune.testing.network import Applied, Network

CUT, BOTH, GROUPS, REFUSAL = "cut equals mask", "torch equals ONNX", "groups", "a refusal has a reason"


@dataclass(frozen=True)
class RuleCheck:
    """How much of a rule was looked at. What was not is not judged.

    Attributes:
        rule: the rule's name.
        compared: oracle -> how many things it compared; 0 where no example gives it anything.
    """

    rule: str
    compared: Mapping[str, int]

    def __str__(self) -> str:
        told = [f"{oracle}: {number or 'nothing'} compared" for oracle, number in self.compared.items()]
        return f"{self.rule}: {'; '.join(told)}"


def check_rule(rule: str | Rule | Registration, *examples: Example, seed: int = 0) -> RuleCheck:
    """Try a rule out on small networks, by four oracles; see `graphprune.testing.oracles`.

    Args:
        rule: a rule that was registered, or one of our own; or its name.
        examples: networks in which the operator occurs, with what is expected of them.
        seed: of the groups that are removed.

    Returns:
        How much was compared.

    Raises:
        RuleError: the rule is wrong, and how that shows; or an example cannot tell.
        UsageError: there is no example.
        CaptureError: a module cannot be captured.
        ModelLoadError: an ONNX model cannot be read, or onnxruntime cannot run it: see `Example.kernels`.
    """
    name = rule.rule.name if isinstance(rule, Registration) else rule.name if isinstance(rule, Rule) else rule
    if not examples:
        raise UsageError(f"the rule '{name}' needs an example to be tried out on")
    compared: Counter[str] = Counter(dict.fromkeys((CUT, BOTH, GROUPS, REFUSAL), 0))
    for number, example in enumerate(examples):
        try:
            compared.update(_check(name, example, seed))
        except RuleError as error:
            raise RuleError(f"{name}, example {number}: {error}") from error
    return RuleCheck(name, dict(compared))


def _check(rule: str, example: Example, seed: int) -> dict[str, int]:
    networks = _networks(example)
    compared = {CUT: 0, BOTH: 0, GROUPS: 0, REFUSAL: 0}
    if example.groups is not None:
        compared[GROUPS] += _told(GROUPS, oracles.groups_are, networks[0], example.groups)
    for network in networks:
        applied = _applied(network, rule)
        compared[REFUSAL] += _told(REFUSAL, oracles.refusal_has_reason, network, applied, example.refused)
        if example.refused is None:
            compared[CUT] += _told(CUT, oracles.cut_equals_mask, network, applied, seed)
    if len(networks) == 2:
        compared[BOTH] += _told(BOTH, oracles.torch_equals_onnx, *networks, seed)
    return compared


def _told(oracle: str, judge: Callable[..., int], *arguments: Any) -> int:
    """What an oracle counts; its name is said where something does not hold."""
    try:
        return judge(*arguments)
    except RuleError as error:
        raise RuleError(f"{oracle}: {error}") from error


def _networks(example: Example) -> list[Network]:
    """The network in each vocabulary it is given in."""
    found: list[Network] = []
    feeds = example.feeds
    if example.module is not None:
        from graphprune.testing.torch_network import TorchNetwork

        found.append(TorchNetwork(example.module, example.inputs))
    if example.onnx is not None:
        from graphprune.testing.onnx_network import OnnxNetwork

        given = feeds if feeds is not None else [tensor.numpy() for tensor in example.inputs]
        found.append(OnnxNetwork(example.onnx, given, example.kernels))
    return found


def _applied(network: Network, rule: str) -> Sequence[Applied]:
    found = network.applied(rule)
    if not found:
        unknown = ", ".join(network.graph.unknown) or "none"
        raise RuleError(f"the {network.vocabulary} network has no operator of this rule; without a rule are: {unknown}")
    return found
