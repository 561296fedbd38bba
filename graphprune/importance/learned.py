"""What of a network is learned, or asked for a gradient: tensors in front of its ends, and its raw heads.

... -> logits -> Softmax    the logits, as classes along the dimension that Softmax says
... -> logits -> ArgMax     the same, though the output has no gradient
... -> x -> Sigmoid         x, as scores
... -> heads -> decoding    the raw heads, as numbers each in its own scale
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from graphprune.importance.output_loss import Form, forms_of
from graphprune.passes.fx.ends import output_end, output_nodes, value_of
from graphprune.passes.fx.heads import raw_heads

if TYPE_CHECKING:
    from torch import fx

    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["Learned"]


@dataclass(frozen=True)
class Learned:
    """Tensors of a captured graph.

    Attributes:
        nodes: names of the nodes that give them.
        known: what each is, where the graph says it.
        setting: what the user says, as in `CompressConfig.output_loss`.
    """

    nodes: tuple[str, ...]
    known: tuple[Form | None, ...]
    setting: str

    @classmethod
    def of(cls, module: "CapturedModule", setting: str = "auto") -> "Learned":
        """Those of a captured model; none where it gives no floating-point number."""
        found: dict[str, Form | None] = {}
        for node in output_nodes(module.graph):
            found.update({name: form for name, form in _at(module, node, setting) if name not in found})
        return cls(tuple(found), tuple(found.values()), setting)

    def forms(self, tensors: Sequence[Tensor]) -> tuple[Form, ...]:
        """What the tensors are, which these are for a batch.

        Raises:
            UsageError: they are said to be classes, and are not.
        """
        return forms_of(tensors, self.setting, self.known)


def _at(module: "CapturedModule", node: "fx.Node", setting: str) -> list[tuple[str, Form | None]]:
    end, value = output_end(node), value_of(node)
    if setting != "mse" and end is not None and end.kind in ("classes", "labels"):
        return [(end.source, Form("logits", end.source_axis))]
    if setting == "auto" and end is not None and end.kind == "scores":
        return [(end.source, Form("scores"))]
    heads = [node] if setting == "kl" else raw_heads(module, node)
    if heads == [node] and (value is None or not value.is_floating_point()):
        return []
    return [(head.name, None) for head in heads]
