"""A network of an example in one vocabulary: analyzed, and run with channels at zero and without them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.operators import Op
from graphprune.passes.channels.value import Value

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Applied:
    """An operator that the rule was applied to, with what the analysis says of its results.

    Attributes:
        op: the operator.
        names: of its results in the network.
        results: what is known of them.
    """

    op: Op
    names: tuple[str, ...]
    results: tuple[Value, ...]


class Network(ABC):
    """One network of an example.

    Attributes:
        vocabulary: "torch" or "ONNX".
        graph: its coupled channels.
    """

    vocabulary: str
    graph: ChannelGraph

    @abstractmethod
    def weights(self) -> Mapping[str, NDArray[Any]]:
        """Numbers of the parameters, by name."""

    @abstractmethod
    def applied(self, rule: str) -> list[Applied]:
        """The operators that a rule was applied to."""

    @abstractmethod
    def dense(self) -> Arrays:
        """The outputs as the network is."""

    @abstractmethod
    def masked(self, removed: Mask, names: Sequence[str]) -> tuple[Arrays, dict[str, NDArray[Any]]]:
        """The outputs with the removed groups at zero, and the values of some names inside."""

    @abstractmethod
    def cut(self, removed: Mask) -> Mapping[str, Arrays]:
        """The outputs without the removed groups, for each way of cutting the network.

        Raises:
            Exception: whatever a network raises that does not hold together any more.
        """
