"""Which numbers of two ONNX models stand for what they compute, where these are not to be equal but near each other.

    outputs                                as they are, in parts of unlike scale
    outputs behind NonMaxSuppression, ...  how many elements they hold
    what enters NonMaxSuppression, ...     in place of these outputs' numbers

Which boxes are left and in what order changes with every digit, so an output that is picked by row is judged by what
it is picked from, image by image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphprune.passes.errors import VerificationError
from graphprune.passes.onnx.decoding import ROWS
from graphprune.passes.onnx.joined import joined_parts
from graphprune.verification.distance import Distance, PartDistance, Parts
from graphprune.verification.selection import SelectionPair, pair_selections

__all__ = ["BATCH", "Numbers"]

BATCH = 64


@dataclass(frozen=True)
class Numbers:
    """What of the outputs and inside of two models is compared.

    Attributes:
        names: of the outputs, in the reference's order.
        inside: the reference's values that enter the part of it that picks rows, as far as they are no outputs.
        pair: these parts of both.
        parts: what each of `names`, and then each of `inside`, is concatenated of.
    """

    names: tuple[str, ...]
    inside: tuple[str, ...]
    pair: SelectionPair
    parts: tuple[Parts, ...]

    @classmethod
    def of(cls, reference: Any, candidate: Any) -> "Numbers":
        """The numbers of two ONNX files, or contents of some.

        Raises:
            VerificationError: one cannot be read, or they have other outputs.
        """
        pair = pair_selections(reference, candidate, ROWS)
        if pair is None:
            raise VerificationError("two files cannot be compared: one of them is no readable ONNX model")
        model = pair.models[0]
        names = tuple(output.name for output in model.graph.output)
        fronts = (ours for ours, _ in pair.fronts if ours in pair.watched[0])
        inside = tuple(dict.fromkeys(fronts)) if pair.complete else ()
        parts = joined_parts(model, (*names, *inside))
        return cls(names, inside, pair, tuple(parts[name] for name in (*names, *inside)))

    def against(self, candidate: Any) -> "Numbers":
        """The same reference with another candidate."""
        return replace(self, pair=self.pair.against(candidate))

    @property
    def watched(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the values that each model is to give besides its outputs."""
        return self.pair.watched

    @property
    def step(self) -> int:
        """How many images to run at a time: one where the number of objects in each counts."""
        return 1 if self._selected else BATCH

    @property
    def _selected(self) -> set[int]:
        return {self.names.index(name) for name in self.pair.outputs} if self.inside else set()

    def distance(self) -> Distance:
        """A new distance of these numbers."""
        return Distance(self.parts, counted=self._selected)

    def judged(self, which: int, outputs: Sequence[np.ndarray], values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The numbers of an answer of the reference (0) or the candidate (1)."""
        theirs = tuple(output.name for output in self.pair.models[which].graph.output)
        if set(theirs) == set(self.names):
            outputs = [outputs[theirs.index(name)] for name in self.names]
        named = {ours: (ours, theirs)[which] for ours, theirs in self.pair.fronts}
        nothing = np.zeros(0, np.float32)  # of another shape than whatever is expected
        return [*outputs, *(values.get(named.get(name, ""), nothing) for name in self.inside)]

    def worst(self, distance: Distance) -> PartDistance:
        """The part that is furthest off.

        Raises:
            VerificationError: there was nothing to compare.
        """
        parts = distance.parts
        if not parts:
            raise VerificationError(
                "nothing was compared: no output holds anything on these images; give some on which the model finds "
                "something"
            )
        return max(parts, key=lambda part: part.distance)

    def describe(self, part: PartDistance) -> str:
        """A part in words; "" if it is the only output."""
        name = (*map(repr, self.names), *map(self.pair.describe, self.inside))[part.output]
        if len(self.parts) == 1 and not part.where:
            return ""
        return f"{name}: {part.where}" if part.where else name

    def notes(self, distance: Distance) -> tuple[str, ...]:
        """What could not be compared."""
        found = []
        if empty := [self.names[index] for index in distance.empty if index < len(self.names)]:
            found.append(
                f"{', '.join(map(repr, empty))}: holds nothing on these images, in neither model; not compared"
            )
        if distance.faults:
            found.append(f"{distance.faults} numbers are NaN or infinite in both models, and are not compared")
        return tuple(found)
