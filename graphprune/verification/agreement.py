"""How often two models give the same answer, where outputs are answers and not numbers (see `output_kinds`).

    classes, labels  share of places (images, steps, pixels) of the same class
    scores           F-measure of what is above a half: 2 |both| / (|ours| + |theirs|)
    classes along a sequence, besides: share of samples of the same best path (runs of one class count once)

A share of all scores would say little: nearly all of a map of text or of boxes is empty in any model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.verification.output_kinds import NUMBERS, OutputKind, are_floats, has_numbers

__all__ = ["Agreement", "OutputAgreement", "plain"]


@dataclass
class OutputAgreement:
    """What was counted at one output.

    Attributes:
        kind: what it is.
        rank: dimensions of its answers, the samples among them.
        seen: places; of scores, what is above a half in either model, counted in each.
        same: places of the same answer; of scores, twice what is above a half in both.
        paths: samples of which it gives a sequence.
        same_paths: those of them of the same best path.
    """

    kind: OutputKind
    rank: int = 0
    seen: int = 0
    same: int = 0
    paths: int = 0
    same_paths: int = 0

    @property
    def share(self) -> float | None:
        """The agreement; None where there was nothing to agree on."""
        return self.same / self.seen if self.seen else None

    @property
    def same_path(self) -> float | None:
        """Share of the sequences with the same best path; None where there is no sequence."""
        return self.same_paths / self.paths if self.paths else None

    @property
    def unit(self) -> str:
        """What `share` is a share of."""
        if self.kind.name == "scores":
            return "labels above one half" if self.rank <= 2 else "pixels above one half"
        return {1: "images", 2: "steps"}.get(self.rank, "pixels")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {"kind": self.kind.name, "agreement": self.share, "unit": self.unit}
        return {**plain, **({"same_paths": self.same_path} if self.paths else {})}


class Agreement:
    """Counts over batches how far the answers of two models are the same, at every output that gives answers.

    Scores in another number agree nowhere, and nothing agrees with NaN.
    """

    def __init__(self) -> None:
        self.outputs: dict[int, OutputAgreement] = {}
        self.has_numbers = False

    def see(
        self, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], kinds: Sequence[OutputKind], rows: int
    ) -> None:
        """Take in the outputs of one batch, of which the first `rows` samples count; `kinds` are those of `ours`."""
        self.has_numbers |= has_numbers(kinds, are_floats(ours))
        for index, (a, b, kind) in enumerate(zip(ours, theirs, kinds, strict=True)):
            if kind == NUMBERS or not a.ndim or (kind.name == "classes" and not _has_classes(a, kind.axis)):
                continue
            found = self.outputs.setdefault(index, OutputAgreement(kind))
            a, b = a[:rows], b[:rows] if b.ndim else b
            if kind.name == "scores":
                _see_scores(found, a, b)
            else:
                _see_classes(found, a, b)

    @property
    def share(self) -> float | None:
        """The agreement, of several outputs the lowest; None where some output is numbers, or none gives answers."""
        shares = [output.share for output in self.outputs.values()]
        known = [share for share in shares if share is not None]
        return None if self.has_numbers or len(known) < len(shares) else min(known, default=None)

    @property
    def unit(self) -> str:
        """What the lowest agreement is a share of."""
        known = [output for output in self.outputs.values() if output.share is not None]
        return min(known, key=lambda output: output.share or 0.0).unit if known else "images"


def _has_classes(array: np.ndarray, axis: int) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating)) and 0 < axis < array.ndim and array.shape[axis] > 1


def _see_scores(found: OutputAgreement, a: np.ndarray, b: np.ndarray) -> None:
    found.rank = a.ndim
    ours = a > 0.5
    theirs = b > 0.5 if a.shape == b.shape else np.zeros_like(ours)
    found.seen += int(ours.sum()) + int(theirs.sum())
    found.same += 2 * int((ours & theirs).sum())


def _see_classes(found: OutputAgreement, a: np.ndarray, b: np.ndarray) -> None:
    is_index = found.kind.name == "labels"
    axis = found.kind.axis
    ours = a if is_index else a.argmax(axis=axis)
    found.rank = ours.ndim
    found.seen += ours.size
    found.paths += len(ours) if ours.ndim == 2 else 0
    if a.shape != b.shape:
        return
    if is_index:
        theirs, finite = b, np.ones(a.shape, bool)
    else:
        theirs = b.argmax(axis=axis)
        finite = np.isfinite(a).all(axis=axis) & np.isfinite(b).all(axis=axis)
    found.same += int(((ours == theirs) & finite).sum())
    if ours.ndim == 2:
        pairs = zip(ours, theirs, [bool(np.all(row)) for row in np.asarray(finite)], strict=True)
        found.same_paths += sum(whole and np.array_equal(_path(x), _path(y)) for x, y, whole in pairs)


def _path(classes: np.ndarray) -> np.ndarray:
    """The classes of a sequence, runs of one counted once, as it is read where steps have no lengths."""
    return classes[np.flatnonzero(np.diff(classes, prepend=classes[:1] - 1))]


def plain(agreement: Agreement, names: Sequence[str]) -> dict[str, Any]:
    """What was counted, by the names of the outputs, as plain data for JSON."""
    return {names[index]: output.to_dict() for index, output in agreement.outputs.items()}
