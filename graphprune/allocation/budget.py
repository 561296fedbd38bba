"""Policy "budget": groups go in the order of score per cost until every budget is met, by counting.

The price of a group is the cost it saves when it goes alone. Prices fall as its neighbours go, so the set is built in
rounds: each goes a part of the way to the budget with prices counted anew. What rounding to whole blocks left below
the budget is given back to the best removed blocks that fit; where none fits and more than 1 % is left, one comes back
in exchange for cheaper ones that are worth less or little more.

With several budgets a price is a weighted sum of what is saved of each. No weighting is right beforehand: with equal
weights one budget is often met long before the others, and overshot while those are reached. So several are tried, and
the one that removes the least worth is taken (Lagrangian relaxation of the knapsack with several constraints).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from graphprune.allocation.removable import Blocks, GroupSetLike, Limits, make_blocks
from graphprune.passes.errors import BudgetError

_ROUNDS = 8
_WEIGHTS = (0.0625, 0.125, 0.25, 0.5, 2.0, 4.0, 8.0, 16.0)  # of one budget against the others
_SLACK = 0.001  # share of the budget that is not worth giving back
_GIVE_BACK_TRIALS = 64
_TIGHT = 0.01  # share of the budget that may be left unused
_EXCHANGES = 16
_FEW = 16  # sets of which two blocks may come back at once
_CANDIDATES = 24  # exchanges counted for each block that may come back


class CostFunction(Protocol):
    """Cost of a slim model by the mask of kept groups, without building it; of the dense one, by unit."""

    dense: Mapping[str, float]

    def macs(self, kept: np.ndarray) -> float: ...  # noqa: D102
    def params(self, kept: np.ndarray) -> int: ...  # noqa: D102
    def macs_marginal(self, kept: np.ndarray) -> np.ndarray: ...  # noqa: D102
    def params_marginal(self, kept: np.ndarray) -> np.ndarray: ...  # noqa: D102


def count(cost: CostFunction, kept: np.ndarray) -> dict[str, float]:
    """Cost of the slim model in every unit."""
    return {"macs": float(cost.macs(kept)), "params": float(cost.params(kept))}


def select(
    scores: np.ndarray,
    cost: CostFunction,
    budgets: Mapping[str, float],
    sets: Sequence[GroupSetLike],
    removable: np.ndarray,
    *,
    limits: Limits | None = None,
    forced: np.ndarray | None = None,
) -> np.ndarray:
    """Mask of the groups to remove so that every budget holds: the least valuable for what they cost.

    Never above a budget; below it by less than the cheapest group that could be given back. A set that is not
    bypassed keeps `limits.min_channels`.

    Shapes: scores, removable, forced and the result (n_groups,).
    Units: `budgets` maps "macs" and "params" to absolute costs, not shares.

    Args:
        scores: worth of each group, at least 0.
        cost: counts the slim model.
        budgets: what must not be exceeded.
        sets: the sets of groups.
        removable: groups that may go.
        limits: what every set keeps.
        forced: groups that are gone already and go in any case.

    Raises:
        BudgetError: the budget cannot be reached even if everything removable goes.
    """
    forced = np.zeros(len(scores), dtype=bool) if forced is None else forced
    blocks = make_blocks(np.where(forced, -1.0, scores), sets, removable, limits or Limits())
    must = blocks.total(forced.astype(float)) > 0
    value = np.maximum(blocks.total(np.where(forced, 0.0, scores)), 0.0)
    problems = [_Problem(cost, dict(budgets), blocks, value, weights) for weights in _weightings(budgets)]
    problems[0].check_reachable()
    found = [problem.solve(must) for problem in problems]
    best = min(range(len(found)), key=lambda number: float(value[found[number]].sum()))
    return blocks.groups(problems[best].exchange(found[best], must))


def check_reachable(
    cost: CostFunction,
    budgets: Mapping[str, float],
    sets: Sequence[GroupSetLike],
    removable: np.ndarray,
    limits: Limits | None = None,
) -> None:
    """See that there is something to remove, and that the budgets are not below the smallest model that may remain.

    Raises:
        BudgetError: it is not so.
    """
    if not removable.any():
        raise BudgetError(
            "no channel of this network can be removed, so no budget can be met; `graphprune inspect` says what holds "
            "them"
        )
    for unit in budgets:
        if not cost.dense[unit]:
            raise BudgetError(f"the network has no {unit} of which a share could be asked for: set another budget")
    blocks = make_blocks(np.zeros(len(removable)), sets, removable, limits or Limits())
    _Problem(cost, dict(budgets), blocks, np.zeros(blocks.count)).check_reachable()


def _weightings(budgets: Mapping[str, float]) -> Iterator[dict[str, float]]:
    """Equal weights first, then each budget in turn above and below the others."""
    yield dict.fromkeys(budgets, 1.0)
    if len(budgets) > 1:
        for unit in budgets:
            for weight in _WEIGHTS if len(budgets) > 2 or unit == next(iter(budgets)) else ():
                yield {**dict.fromkeys(budgets, 1.0), unit: weight}


class _Problem:
    """One call of `select`; its state is in the masks of chosen blocks that are handed around."""

    def __init__(
        self,
        cost: CostFunction,
        budgets: dict[str, float],
        blocks: Blocks,
        value: np.ndarray,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.cost = cost
        self.weights = weights or dict.fromkeys(budgets, 1.0)
        self.budgets = budgets
        self.blocks = blocks
        # A hair above zero, so that among worthless groups the price decides.
        self.value = value + 1e-6 * (value.mean() if value.any() else 1.0)
        self.dense = self.count(np.zeros(blocks.count, dtype=bool))

    def kept(self, chosen: np.ndarray) -> np.ndarray:
        return ~self.blocks.groups(chosen)

    def count(self, chosen: np.ndarray) -> dict[str, float]:
        kept = self.kept(chosen)
        return {unit: float(getattr(self.cost, unit)(kept)) for unit in self.budgets}

    def fits(self, chosen: np.ndarray, budgets: Mapping[str, float]) -> bool:
        found = self.count(chosen)
        return all(found[unit] <= budgets[unit] for unit in budgets)

    def check_reachable(self) -> None:
        least = self.count(np.ones(self.blocks.count, dtype=bool))
        for unit, budget in self.budgets.items():
            if least[unit] > budget:
                dense = self.cost.dense[unit]
                raise BudgetError(
                    f"`{unit}={budget / dense:.3g}` cannot be reached: with everything removed that may go, "
                    f"{least[unit] / dense:.3g} of the {unit} remain; ask for more than that"
                )

    def solve(self, must: np.ndarray) -> np.ndarray:
        """Blocks to remove so that every budget holds, those of `must` among them."""
        chosen = must.copy()
        for part in range(1, _ROUNDS + 1):
            chosen = self.advance(chosen, part / _ROUNDS)
        return self.give_back(chosen, must)

    def prices(self, chosen: np.ndarray, budgets: Mapping[str, float]) -> np.ndarray:
        """What each block saves, in units of what is still to be saved; a budget that is met asks for nothing."""
        kept = self.kept(chosen)
        found = self.count(chosen)
        price = np.zeros(self.blocks.count)
        for unit, budget in budgets.items():
            if found[unit] > budget:
                marginal = getattr(self.cost, f"{unit}_marginal")(kept)
                saved = self.blocks.total(np.asarray(marginal, dtype=float))
                price += self.weights[unit] * saved / (found[unit] - budget)
        return price

    def order(self, chosen: np.ndarray, budgets: Mapping[str, float]) -> np.ndarray:
        """The blocks not chosen yet, cheapest per saving first, those of one set in their own order."""
        ratio = self.value / np.maximum(self.prices(chosen, budgets), 1e-12)
        ratio[chosen] = 0.0
        if not len(ratio):
            return np.zeros(0, dtype=np.int64)
        starts = np.flatnonzero(np.r_[True, np.diff(self.blocks.set_of) != 0])
        for start, end in zip(starts, np.r_[starts[1:], len(ratio)], strict=True):
            np.maximum.accumulate(ratio[start:end], out=ratio[start:end])
        order = np.argsort(ratio, kind="stable")
        return order[~chosen[order]]

    def advance(self, chosen: np.ndarray, part: float) -> np.ndarray:
        """Choose the fewest further blocks that reach `part` of the way from dense to the budgets."""
        goal = {unit: dense + part * min(0.0, self.budgets[unit] - dense) for unit, dense in self.dense.items()}
        if part == 1.0:
            goal = self.budgets
        order = self.order(chosen, goal)
        low, high = 0, len(order)  # a prefix of `high` blocks is enough
        while low < high:
            middle = (low + high) // 2
            if self.fits(_with(chosen, order[:middle]), goal):
                high = middle
            else:
                low = middle + 1
        return _with(chosen, order[:high])

    def give_back(self, chosen: np.ndarray, must: np.ndarray) -> np.ndarray:
        """Keep the most valuable of the chosen blocks that fit into what is left of the budgets."""
        for _ in range(_GIVE_BACK_TRIALS):
            found = self.count(chosen)
            if any(found[unit] > budget * (1 - _SLACK) for unit, budget in self.budgets.items()):
                break
            for block in self.last_of_each_set(chosen & ~must):
                fewer = chosen.copy()
                fewer[block] = False
                if self.fits(fewer, self.budgets):
                    chosen = fewer
                    break
            else:
                break
        return chosen

    def used(self, chosen: np.ndarray) -> float:
        """Share of the budget that is used up most."""
        found = self.count(chosen)
        return max((found[unit] / budget for unit, budget in self.budgets.items()), default=1.0)

    def exchange(self, chosen: np.ndarray, must: np.ndarray) -> np.ndarray:
        """Use up more of the budget: take a block back and let others go for it, as long as little enough is lost."""
        for _ in range(_EXCHANGES):
            used = self.used(chosen)
            if used >= 1 - _TIGHT:
                break
            ends = self.last_of_each_set(chosen & ~must)
            singles = [np.array([end]) for end in ends]
            pairs = [np.array(pair) for pair in combinations(ends, 2)] if len(ends) <= _FEW else []
            # One for another where that is enough; two come back only where it is not.
            found: list[_Exchange] = []
            tight: list[_Exchange] = []
            for backs in (singles, pairs):
                found += self._exchanges(chosen, backs, used)
                tight = [exchange for exchange in found if exchange.used >= 1 - _TIGHT]
                if tight:
                    break
            if not found:
                break
            if tight:
                best = min(tight, key=lambda exchange: exchange.lost)
            else:
                best = max(found, key=lambda exchange: exchange.used)
            chosen = self.give_back(best.chosen, must)
        return chosen

    def _exchanges(self, chosen: np.ndarray, backs: Sequence[np.ndarray], used: float) -> Iterator["_Exchange"]:
        """What else may be chosen when one of `backs` comes back; only what uses more of the budget than `used`."""
        for back in backs:
            start = chosen.copy()
            start[back] = False
            for go in self._going(start, self.blocks.set_of[back]):
                trial = _with(start, go)
                if self.fits(trial, self.budgets) and (now := self.used(trial)) > used + _SLACK:
                    yield _Exchange(trial, now, float(self.value[go].sum() - self.value[back].sum()))

    def _going(self, chosen: np.ndarray, sets: np.ndarray) -> list[np.ndarray]:
        """Blocks that may go for one of `sets`: one or two of other sets, those that save least beyond their due."""
        found = self.count(chosen)
        unit, budget = max(self.budgets.items(), key=lambda item: found[item[0]] / item[1])
        saved = self.blocks.total(np.asarray(getattr(self.cost, f"{unit}_marginal")(self.kept(chosen)), dtype=float))
        runs = []
        for first in self.first_of_each_set(chosen):
            if self.blocks.set_of[first] in sets:
                continue
            follows = first + 1 < self.blocks.count and self.blocks.set_of[first + 1] == self.blocks.set_of[first]
            runs += [np.array([first])] + ([np.array([first, first + 1])] if follows else [])
        over = found[unit] - budget
        # Marginal savings shrink as others go: what is a little short by this count may still do, and is counted.
        enough = [run for run in runs if saved[run].sum() >= 0.9 * over]
        pairs = [
            np.concatenate(pair)
            for pair in combinations([run for run in runs if len(run) == 1 and saved[run].sum() < over], 2)
            if saved[np.concatenate(pair)].sum() >= 0.9 * over
        ]
        return sorted(enough + pairs, key=lambda run: float(saved[run].sum()))[:_CANDIDATES]

    def first_of_each_set(self, chosen: np.ndarray) -> np.ndarray:
        """The block of each set that would go next."""
        free = np.flatnonzero(~chosen)
        return free[np.unique(self.blocks.set_of[free], return_index=True)[1]]

    def last_of_each_set(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen block of each set that went last, most valuable first: the ones that can come back."""
        last = {int(self.blocks.set_of[i]): int(i) for i in np.flatnonzero(chosen)}
        ends = np.asarray(list(last.values()), dtype=np.int64)
        return ends[np.argsort(-self.value[ends], kind="stable")]


@dataclass(frozen=True)
class _Exchange:
    """Another choice of blocks: how much of the budget it uses, and what is lost by it."""

    chosen: np.ndarray
    used: float
    lost: float


def _with(chosen: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    result = chosen.copy()
    result[blocks] = True
    return result
