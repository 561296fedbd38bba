"""A linear trunk in another basis: the function stays, and the channels come in the order of what they are worth.

With z the trunk, Σ its covariance and E what its readers do with it, each times the root of what its errors count,

    Σ = L Lᵀ,    Lᵀ E Eᵀ L = U S² Uᵀ,    Q R = L⁻ᵀ U

the first k columns of the orthogonal Q span what has to be kept of z, so that readers that are fitted anew lose least
of all subspaces of k dimensions; what they lose is half the sum of the other S² (reduced-rank regression). Writers are
multiplied by Qᵀ, readers by Q. (Compare Hsu et al. 2022 and Ashkboos et al. 2024, SliceGPT, for language models.)
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from graphprune.data.batches import Batch, tensors_of
from graphprune.passes.errors import VerificationError
from graphprune.passes.fx.cut import named_tensors
from graphprune.passes.fx.outputs import difference, run
from graphprune.reconstruction.batches import RowBlocks
from graphprune.reconstruction.curves import folded, norm_scale
from graphprune.reconstruction.fit import Fit
from graphprune.reconstruction.layers import Layer
from graphprune.reconstruction.teacher import Seen
from graphprune.reconstruction.trunks import Trunk
from graphprune.reconstruction.write import write

if TYPE_CHECKING:
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["Basis", "find_basis", "require_same_function", "rotate", "rotate_seen"]

_RIDGE = 1e-6  # share of the mean variance
_TOLERANCE = 1e-4  # of the outputs of the network


@dataclass(frozen=True)
class Basis:
    """A basis of a trunk.

    Attributes:
        matrix: (n, n) orthogonal; column j is what the channel at place j says.
        costs: (n,) what the readers lose without the channel at each place, if they are fitted anew.
    """

    matrix: Tensor
    costs: Tensor

    def with_last_at(self, gone: np.ndarray) -> "Basis":
        """The same with the channels that are worth least at some places.

        Args:
            gone: (n,) whether a place is one of those.
        """
        rank = np.empty(len(gone), dtype=np.int64)
        rank[np.argsort(gone, kind="stable")] = np.arange(len(gone))
        order = torch.from_numpy(rank)
        return Basis(self.matrix[:, order], self.costs[order])


def find_basis(trunk: Trunk, seen: Mapping[str, Seen], tensors: Mapping[str, Tensor], first: float = 1.0) -> Basis:
    """The basis whose first channels are worth most, in that order.

    Args:
        trunk: the trunk.
        seen: what was seen of the layers, with targets: those of the writers are the trunk.
        tensors: parameters and buffers of the network, by name.
        first: what an error of the first layer counts beside one of the last; see `Seen.worth`.
    """
    read = []
    for layer, places in trunk.readers:
        weight = folded(layer, tensors, 1)[0][0] * seen[layer.name].worth(first) ** 0.5
        read += [weight[torch.from_numpy(at)] for at in places]
    both = torch.cat(read, 1)
    factor = torch.linalg.cholesky(_covariance(trunk, seen))
    white = factor.T @ both
    squares, directions = torch.linalg.eigh(white @ white.T)
    kept = torch.linalg.solve_triangular(factor.T, directions.flip(1), upper=True)
    return Basis(torch.linalg.qr(kept)[0], 0.5 * squares.flip(0).clamp_min(0))


def _covariance(trunk: Trunk, seen: Mapping[str, Seen]) -> Tensor:
    size = len(trunk.groups)
    total, looked = torch.zeros(size, size, dtype=torch.float64), 0
    for layer, places in trunk.writers:
        rows = seen[layer.name].target.all()[:, torch.from_numpy(places)].double()
        rows -= rows.mean(0)
        total += rows.T @ rows
        looked += len(rows)
    found = total / max(looked, 1)
    return found + torch.eye(size, dtype=torch.float64) * (_RIDGE * found.diagonal().mean().clamp_min(1e-30))


@torch.no_grad()
def rotate(trunk: Trunk, matrix: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and buffers that differ where a trunk is held in another basis, by name.

    Args:
        trunk: the trunk.
        matrix: (n, n) orthogonal; its columns are the basis.
        tensors: parameters and buffers of the network, by name; not touched.
    """
    changed: dict[str, Tensor] = {}
    for layer, places in trunk.writers:
        names = [layer.weight, layer.bias]
        names += [] if layer.norm is None else [getattr(layer.norm, n) for n in ("weight", "bias", "mean", "variance")]
        changed |= {name: tensors[name].detach().clone() for name in names if name is not None and name not in changed}
        write(layer, changed, _written(layer, _across(matrix, places), tensors))
    for layer, rows in trunk.readers:
        held = changed.get(layer.weight, tensors[layer.weight]).detach()
        whole = layer.matrices(held, 1).double()
        for at in map(torch.from_numpy, rows):
            whole[0, at] = matrix.T @ whole[0, at]
        changed[layer.weight] = layer.weight_of(whole, held.shape).to(held.dtype)
    return changed


def _written(layer: Layer, across: Tensor, tensors: Mapping[str, Tensor]) -> Fit:
    """A writer whose outputs y are acrossᵀ y, as a solved layer."""
    weight, bias = folded(layer, tensors, 1)
    zero = torch.zeros_like(bias)
    mean, variance = zero, zero
    if layer.norm is not None:
        scale, own = norm_scale(layer, tensors), 0.0 if layer.bias is None else tensors[layer.bias].double()
        mean = ((tensors[layer.norm.mean].double() - own) * scale)[None] @ across
        # As if the outputs varied independently; the function is the same whatever the norm's variances are.
        variance = (tensors[layer.norm.variance].double() * scale.square())[None] @ across.square()
    return Fit(weight @ across, bias @ across, mean, variance, 0.0, 0.0, 0.0, 0)


def _across(matrix: Tensor, places: np.ndarray) -> Tensor:
    """The matrix for channels that lie at other places."""
    at = torch.from_numpy(np.argsort(places))
    return matrix[at][:, at]


def rotate_seen(trunk: Trunk, matrix: Tensor, seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """What the network would have been seen to do, of the layers at a trunk that is held in another basis."""
    found = dict(seen)
    for layer, places in trunk.writers:
        own = found[layer.name]
        found[layer.name] = replace(own, target=_turned(own.target, _across(matrix, places)))
    for layer, rows in trunk.readers:
        own = found[layer.name]
        found[layer.name] = replace(own, read=_turned(own.read, _across(matrix, rows[0])))
    return {layer.name: found[layer.name] for layer, _ in (*trunk.writers, *trunk.readers)}


def _turned(blocks: RowBlocks, matrix: Tensor) -> RowBlocks:
    return blocks.mapped(lambda rows: rows @ matrix.to(rows.dtype))


def require_same_function(module: "CapturedModule", changed: Mapping[str, Tensor], images: Batch) -> float:
    """The largest difference that other parameters make to the outputs in inference.

    Raises:
        VerificationError: it is more than rounding explains.
    """
    other = copy.deepcopy(module).eval()
    before, tensors = run(other, tensors_of(images)), named_tensors(other)
    with torch.no_grad():
        for name, tensor in changed.items():
            tensors[name].copy_(tensor)
    after = run(other, tensors_of(images))
    worst = max((difference(a, b) for a, b in zip(before, after, strict=True)), default=0.0)
    if not worst <= _TOLERANCE:
        raise VerificationError(
            f"a trunk in another basis changes the outputs by {worst:.3g} (allowed {_TOLERANCE:g}): report this"
        )
    return worst
