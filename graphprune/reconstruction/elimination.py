"""What it costs to take channels from a layer that can make up for them, one block after another.

With P = (H + λ s I)⁻¹ of the rows that are left and W what the layer does with them, fitted anew each time,

    Δ(c) = ½ tr( W_cᵀ P_cc⁻¹ W_c ),    W ← W − P_:c P_cc⁻¹ W_c,    P ← P − P_:c P_cc⁻¹ P_c:

Sources: Hassibi & Stork 1993 (OBS); Frantar & Alistarh 2022 (OBC), blocks as in Kurtic et al. 2023 (ZipLM).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from graphprune.reconstruction.moments import Ridge

__all__ = ["Reader", "eliminate"]

_BATCH = 16  # so many of what is left go at once
_REFRESH = 64  # removals after which rounding is swept out


class Reader:
    """A layer, or one group of it, that channels are taken from.

    Args:
        second: (n, n) second moments of what it reads.
        weight: (n, m) what it does with that; the scale of the costs is in it.
        ids: (n,) group of channels of each row, -1 for those that stay.
        share: λ.
        is_refitted: whether the layer makes up for what goes. Otherwise Δ(c) = ½ tr(W_cᵀ H_cc W_c).
    """

    def __init__(
        self, second: Tensor, weight: Tensor, ids: np.ndarray, share: float = 1e-2, is_refitted: bool = True
    ) -> None:
        self._second, self._share, self._is_refitted = second, share, is_refitted
        self._left = torch.arange(len(second))
        self._ids = torch.from_numpy(np.asarray(ids, dtype=np.int64))
        self._weight = weight.double().clone()
        self._inverse = self._fresh_inverse()
        self._since = 0

    def _fresh_inverse(self) -> Tensor:
        own = self._second[self._left][:, self._left]
        if not self._is_refitted:
            return own
        found = Ridge(own[None], self._share).inverse()[0]
        return (found + found.T) / 2

    def costs(self, count: int) -> Tensor:
        """(count,) Δ of each group of channels; 0 for those that it does not read."""
        found = torch.zeros(count, dtype=torch.float64)
        for groups, columns in self._blocks():
            square = self._inverse[columns[:, :, None], columns[:, None, :]]
            weight = self._weight[columns]
            if not self._is_refitted:
                found[groups] = 0.5 * (weight * (square @ weight)).sum((1, 2))
            elif columns.shape[1] == 1:
                found[groups] = 0.5 * weight[:, 0].square().sum(1) / square[:, 0, 0].clamp_min(1e-30)
            else:
                found[groups] = 0.5 * (weight * torch.linalg.solve(square, weight)).sum((1, 2))
        return found

    def _blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Groups with as many rows each, and (groups, rows) those."""
        ids = self._ids[self._left]
        order = torch.argsort(ids, stable=True)
        order = order[ids[order] >= 0]
        groups, counts = torch.unique_consecutive(ids[order], return_counts=True)
        starts = counts.cumsum(0) - counts
        found = []
        for size in counts.unique().tolist():
            chosen = counts == size
            found.append((groups[chosen], order[starts[chosen][:, None] + torch.arange(size)]))
        return found

    def remove(self, groups: Tensor) -> float:
        """Take groups of channels away; what that costs in all."""
        goes = torch.isin(self._ids[self._left], groups)
        if not bool(goes.any()):
            return 0.0
        out, rest = goes.nonzero().ravel(), (~goes).nonzero().ravel()
        gone = self._weight[out]
        block = self._inverse[out][:, out]
        if self._is_refitted:
            beside = self._inverse[rest][:, out]
            solved = torch.linalg.solve(block, torch.cat([gone, beside.T], 1))
            found = 0.5 * float((gone * solved[:, : gone.shape[1]]).sum())
            self._weight = self._weight[rest] - beside @ solved[:, : gone.shape[1]]
            inverse = self._inverse[rest][:, rest] - beside @ solved[:, gone.shape[1] :]
            self._inverse = (inverse + inverse.T) / 2
        else:
            found = 0.5 * float((gone * (block @ gone)).sum())
            self._weight, self._inverse = self._weight[rest], self._inverse[rest][:, rest]
        self._left = self._left[rest]
        self._since += len(groups)
        is_off = len(rest) and bool((self._inverse.diagonal() <= 0).any())
        if self._is_refitted and (self._since >= _REFRESH or is_off):
            self._inverse, self._since = self._fresh_inverse(), 0
        return max(found, 0.0)


def eliminate(readers: Sequence[Reader], groups: np.ndarray, prices: np.ndarray) -> list[tuple[int, float]]:
    """All of some groups of channels in the order in which they are missed least, each with what its going costs.

    A sixteenth of what is left goes at a time; what that costs together is shared out in proportion.

    Args:
        readers: everything that reads them.
        groups: their ids.
        prices: (groups,) what each saves; those that are missed least for it go first.
    """
    order: list[tuple[int, float]] = []
    left = torch.from_numpy(np.asarray(groups, dtype=np.int64))
    price = torch.from_numpy(np.maximum(np.asarray(prices, dtype=np.float64), 1e-12))
    most = int(left.max()) + 1 if len(left) else 0
    while len(left):
        costs = torch.stack([reader.costs(most) for reader in readers]).sum(0)[left].clamp_min(0)
        first = torch.argsort(costs / price, stable=True)[: max(1, len(left) // _BATCH)]
        going, single = left[first], costs[first]
        together = sum(reader.remove(going) for reader in readers)
        total = float(single.sum())
        scale = together / total if total > 0 else 1.0
        order += list(zip(going.tolist(), (single * scale).tolist(), strict=True))
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[first] = False
        left, price = left[stays], price[stays]
    return order
