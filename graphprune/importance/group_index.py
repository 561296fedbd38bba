"""Coupled channel groups as seen by the training step: norms, sums and shrinking of all groups at once.

A group is a set of slices (parameter, dimension, index). For all groups together

    q_g = sum over the members of g of t      for any tensors t shaped as the parameters

is one sum of each parameter over its other dimensions, one concatenation and one `index_add`: no loop over
channels, no index per element. An element of a weight may lie in two groups, its output channel's and its input
channel's: it counts in the sums of both, and the two shrink factors multiply. Where both are the same group (a
convolution from a residual trunk into itself) the element is counted once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

#: Elements that a function is applied to at once: what fits into a processor's cache.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class _Member:
    """The dimensions of one parameter that carry groups."""

    dims: tuple[int, ...]
    ids: tuple[Tensor, ...]  # per dimension: group of each index, n_groups where there is none; on the CPU
    # (index in dims[0], index in dims[1], group) of doubly held slices, the indices where the parameter is
    overlap: tuple[Tensor, Tensor, Tensor] | None


class GroupIndex:
    """Maps the parameters of a model to its coupled channel groups.

    Shapes: sums and norms are (n_groups,), float32 or the parameters' own precision if that is higher. Tensors handed
    in are listed as `names`. They may be on any device; what is one number a group is on the CPU, in one transfer.

    Args:
        parameters: by name.
        axes: (name, dimension) -> group of each index, -1 where there is none.
        n_groups: number of groups.
        sizes: elements of each group; by default those that are in the parameters.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        axes: Mapping[tuple[str, int], np.ndarray],
        n_groups: int,
        sizes: Tensor | None = None,
    ) -> None:
        self.n_groups = n_groups
        self._dtype = torch.float32
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self._members: list[_Member] = []
        seen: set[int] = set()  # tied weights have several names and count once
        for name, parameter in parameters.items():
            dims = tuple(d for d in range(parameter.ndim) if (name, d) in axes and (axes[name, d] >= 0).any())
            if dims and id(parameter) not in seen:
                seen.add(id(parameter))
                self.names.append(name)
                self.parameters.append(parameter)
                self._members.append(_member(dims, [axes[name, d] for d in dims], n_groups, parameter.device))
                self._dtype = torch.promote_types(self._dtype, parameter.dtype)
        self._ids = torch.cat([ids for m in self._members for ids in m.ids] or [torch.zeros(0, dtype=torch.long)])
        self._lengths = [len(ids) for m in self._members for ids in m.ids]
        self.sizes = self._elements() if sizes is None else sizes

    @property
    def _device(self) -> torch.device | None:
        return self.parameters[0].device if self.parameters else None

    def _elements(self) -> Tensor:
        """Elements of each group: what `sums` would give of ones."""
        pieces: list[Tensor] = []
        doubly: list[tuple[Tensor, Tensor]] = []
        for parameter, member in zip(self.parameters, self._members, strict=True):
            counts = [parameter.numel() // max(parameter.shape[dim], 1) for dim in member.dims]
            pieces.extend(
                torch.full((len(ids),), float(n), dtype=self._dtype) for n, ids in zip(counts, member.ids, strict=True)
            )
            if member.overlap is not None:
                groups = member.overlap[2]
                each = counts[0] // max(parameter.shape[member.dims[1]], 1)
                doubly.append((groups, torch.full((len(groups),), float(each), dtype=self._dtype)))
        return self._total(pieces, doubly)

    def sums(self, tensors: Sequence[Tensor], function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Per group, the sum of the elements of its members in `tensors`, which are shaped as the parameters.

        With a `function`, of what it makes of each element; its results are never held for a whole large tensor.
        """
        pieces: list[Tensor] = []
        doubly: list[tuple[Tensor, Tensor]] = []
        for tensor, member in zip(tensors, self._members, strict=True):
            core, own = _member_sums(tensor, member, function)
            pieces.extend(own)
            if member.overlap is not None:
                first, second, groups = member.overlap
                doubly.append((groups, core[first, second]))
        return self._total(pieces, doubly)

    def _total(self, pieces: list[Tensor], doubly: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Add up one number for each index of each member's dimensions, less what two of them hold, by group."""
        total = torch.zeros(self.n_groups + 1, dtype=self._dtype)
        if pieces:
            total.index_add_(0, self._ids, torch.cat(pieces).to(total))
        if doubly:
            groups, values = (torch.cat(parts) for parts in zip(*doubly, strict=True))
            total.index_add_(0, groups, values.to(total), alpha=-1)
        return total[: self.n_groups]

    @torch.no_grad()
    def norms(self) -> Tensor:
        """L2 norm of each group over all its members."""
        return self.sums(self.parameters, torch.square).clamp_min_(0).sqrt_()

    @torch.no_grad()
    def slopes(self) -> Tensor:
        """Sum over the members of each group of w * dL/dw: minus the first-order change of the loss without it."""
        return self.sums([p * _grad(p) for p in self.parameters])

    @torch.no_grad()
    def squared_distances(self, groups: np.ndarray) -> Tensor:
        """Squared distances between the members of some groups that have the same structure.

        Shapes: groups (k,); returns (k, k). A member that lies in two of the groups counts for both.
        """
        total = torch.zeros(len(groups), len(groups), dtype=self._dtype, device=self._device)
        position = np.full(self.n_groups + 1, -1)
        position[groups] = np.arange(len(groups))
        for parameter, member in zip(self.parameters, self._members, strict=True):
            for dim, ids in zip(member.dims, member.ids, strict=True):
                where = position[ids.numpy()]
                rows = np.flatnonzero(where >= 0)
                if not len(groups) or len(rows) < len(groups):
                    continue  # removed already
                order = rows[np.argsort(where[rows], kind="stable")]
                rows_in_order = torch.from_numpy(order).to(parameter.device)
                values = parameter.movedim(dim, 0)[rows_in_order].reshape(len(groups), -1).to(self._dtype)
                total += torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").square_()
        return total.cpu()

    @torch.no_grad()
    def scale_(self, factors: Tensor, tensors: Sequence[Tensor | None] | None = None) -> None:
        """Multiply the members of each group by its factor, in the parameters or in `tensors` shaped like them."""
        padded = torch.cat([factors, factors.new_ones(1)])
        values = padded[self._ids]
        touched = np.cumsum(np.append(0, (values != 1).numpy()))
        if touched[-1]:
            values = values.to(self._device)
        start = 0
        for tensor, member in zip(self.parameters if tensors is None else tensors, self._members, strict=True):
            for dim, ids in zip(member.dims, member.ids, strict=True):
                end = start + len(ids)
                if tensor is not None and touched[start] != touched[end]:
                    shape = [1] * tensor.ndim
                    shape[dim] = -1
                    tensor.mul_(values[start:end].view(shape))
                start = end

    def clear_state_(self, optimizer: torch.optim.Optimizer, groups: Tensor) -> None:
        """Zero what the optimizer remembers of `groups` (a mask), so that nothing moves them again."""
        keep = (~groups).to(self._dtype)
        slots: dict[str, list[Tensor | None]] = {}
        for i, parameter in enumerate(self.parameters):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    slots.setdefault(key, [None] * len(self.parameters))[i] = value
        for tensors in slots.values():
            self.scale_(keep, tensors)


def shrink_factors(norms: Tensor, thresholds: Tensor) -> Tensor:
    """Factors of the group soft threshold: max(0, 1 - threshold / norm); a group of norm 0 stays where it is.

    Source: proximal operator of the group lasso, Yuan & Lin 2006; as ISTA step in Ruan et al. 2021 (DPFPS).
    """
    return torch.where(
        norms > 0, (1 - thresholds / norms.clamp_min(1e-30)).clamp_min(0), (thresholds <= 0).to(norms.dtype)
    )


def _grad(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _member_sums(
    tensor: Tensor, member: _Member, function: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """The sum over the dimensions without groups, and from it the sum for each index of each dimension with groups.

    The former is given where slices are held doubly, and else empty.
    """
    other = [d for d in range(tensor.ndim) if d not in member.dims]
    rows = max(1, _BLOCK * len(tensor) // max(tensor.numel(), 1)) if function is not None and tensor.ndim else 0
    cores: list[Tensor] = []
    parts: list[list[Tensor]] = [[] for _ in member.dims]
    for block in torch.split(tensor, rows) if rows else (tensor,):
        block = block if function is None else function(block)
        core = block.sum(dim=other) if other else block
        if member.overlap is not None:
            cores.append(core)
        for position, part in enumerate(parts):
            rest = [d for d in range(core.ndim) if d != position]
            part.append(core.sum(dim=rest) if rest else core)
    joined = [
        part[0] if len(part) == 1 else torch.cat(part) if dim == 0 else torch.stack(part).sum(0)
        for dim, part in zip(member.dims, parts, strict=True)
    ]
    if not cores:
        return tensor.new_empty(0), joined
    return (torch.cat(cores) if member.dims[0] == 0 else torch.stack(cores).sum(0)), joined


def _member(dims: tuple[int, ...], axes: Sequence[np.ndarray], n_groups: int, device: torch.device) -> _Member:
    ids = tuple(torch.from_numpy(np.where(a >= 0, a, n_groups).astype(np.int64)) for a in axes)
    overlap = None
    if len(dims) == 2:
        shared = np.intersect1d(axes[0][axes[0] >= 0], axes[1][axes[1] >= 0])
        rows, columns = (np.flatnonzero(np.isin(a, shared)) for a in axes)
        first, second = np.nonzero(axes[0][rows][:, None] == axes[1][columns][None, :])
        if len(first):
            held = torch.from_numpy(rows[first])
            overlap = (held.to(device), torch.from_numpy(columns[second]).to(device), ids[0][held])
    return _Member(dims, ids, overlap)
