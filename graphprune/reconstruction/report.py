"""What a reconstruction did, layer by layer."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphprune.reconstruction.fit import MAPPED
from graphprune.reconstruction.layers import Layer, Unfit
from graphprune.reconstruction.student import Solved

__all__ = ["LayerReport", "ReconstructionReport", "described"]


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        layer: name of its weight, or of its operator where there is none.
        outcome: "fitted", "mapped" (by channels), "plain" (removal alone) or "unchanged" (it reads what it read).
        reason: why it was not fitted; empty where it was.
        strength: of the ridge.
        rows: rows that it was fitted to.
        plain_error: squared error behind the activation on images held out, with plain removal.
        error: that of the fit.
        is_rotated: whether it writes to a linear trunk that is held in another basis.
    """

    layer: str
    outcome: str
    reason: str = ""
    strength: float | None = None
    rows: int = 0
    plain_error: float | None = None
    error: float | None = None
    is_rotated: bool = False


@dataclass(frozen=True)
class ReconstructionReport:
    """What a reconstruction did.

    Attributes:
        images: how many were fitted to.
        judged: how many others the agreement was measured on.
        agreement: share of those that dense and slim model put into the same class; None for other networks.
        distance: squared distance of the outputs on them, relative to their spread.
        seconds: wall clock.
        cpu_seconds: processor time.
        layers: all layers in the order of computation.
    """

    images: int
    judged: int
    agreement: float | None
    distance: float
    seconds: float
    cpu_seconds: float
    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        quality = f"distance {self.distance:.3g}" if self.agreement is None else f"agreement {self.agreement:.1%}"
        return f"{summary(self.layers)}; {quality} on {self.judged} other images; {self.cpu_seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def summary(layers: Sequence[LayerReport]) -> str:
    """In words: how many layers were fitted, and why which were not."""
    count = {what: [layer for layer in layers if layer.outcome == what] for what in ("fitted", "mapped", "plain")}
    parts = [f"{len(count['fitted'])} layers fitted in closed form"]
    parts += [f"{len(count['mapped'])} by a map of channels"] if count["mapped"] else []
    turned = sum(layer.is_rotated for layer in layers)
    parts += [f"{turned} to a trunk in another basis"] if turned else []
    reasons = sorted({layer.reason for layer in count["plain"]})
    parts += [f"{len(count['plain'])} left as they were ({'; '.join(reasons)})"] if count["plain"] else []
    return ", ".join(parts)


def described(
    solved: Sequence[Solved], layers: Sequence[Layer], unfit: Sequence[Unfit], turned: Collection[str] = ()
) -> list[LayerReport]:
    """Reports of all layers: those that were solved, went with their branch, or have no least-squares form.

    Args:
        solved: what became of those that are there.
        layers: all of them.
        unfit: those that have no such form.
        turned: names of layers that write to a trunk in another basis.
    """
    found = {one.layer.name: one for one in solved}
    reports = []
    for layer in layers:
        one, is_turned = found.get(layer.name), layer.name in turned
        if one is None:
            reports.append(LayerReport(layer.weight, "plain", "it went with its branch"))
        elif one.fit is None:
            is_same = one.reason.startswith("nothing that it reads")
            outcome = "unchanged" if is_same else "plain"
            reports.append(LayerReport(layer.weight, outcome, one.reason, is_rotated=is_turned))
        else:
            fit = one.fit
            outcome = "plain" if not fit.strength else "mapped" if fit.strength == MAPPED else "fitted"
            strength = fit.strength if outcome == "fitted" else None
            errors = (fit.rows, fit.plain, fit.error, is_turned)
            reports.append(LayerReport(layer.weight, outcome, one.reason, strength, *errors))
    return reports + [LayerReport(one.weight or one.name, "plain", one.reason) for one in unfit]
