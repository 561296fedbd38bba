"""Policy "knapsack": the widths of all sets at once, so that least is lost within every budget.

    min  sum_s sum_k  lost_sk x_sk        x_sk = 1: set s keeps its k-th width        sum_k x_sk = 1
    s.t. sum_l cost_l(n_a, n_b) <= budget                          for every unit with a budget

A multiple-choice knapsack whose items have prices in pairs: a layer's time depends on the widths of the sets on both of
its sides. Each pair of lengths that share a layer gets variables y_ij >= 0 with x_i and x_j as their marginals (the
local polytope of a pairwise model), in which every cost is linear. A length that several sets add up to has variables
of its own, tied to theirs. Solved by HiGHS to a gap of 0.5 %, limited by nodes and not by time, so that it is
repeatable. Widths are looked at coarsely first, then closely around what was found.

Source: multiple-choice knapsack for latency, HALP (Shen et al. 2022); linearization of products, Fortet 1960.
"""

import logging

import numpy as np

from graphprune.allocation.choices import Choice, choices_of, filled, removed_at
from graphprune.allocation.problem import LATENCY, Problem, count_dense
from graphprune.allocation.program import Infeasible, Program
from graphprune.allocation.resources import Layer, layers_of, limit_of
from graphprune.allocation.steps import on_steps, open_choices
from graphprune.passes.errors import BudgetError

__all__ = ["knapsack"]

logger = logging.getLogger("graphprune")

_COARSE, _FINE = 12, 9  # widths of a set
_CORRECTIONS = 8
_MARGIN = 0.0005  # share of a budget


def knapsack(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,).

    Raises:
        BudgetError: a budget cannot be reached.
    """
    layers = {unit: layers_of(problem, unit) for unit in sorted(problem.budgets)}
    choices = choices_of(problem, _COARSE)
    if problem.is_on_steps:
        choices = on_steps(problem, choices)
    widths = _within(problem, choices, layers)
    fine = open_choices(problem)
    near = [_near(c, f, int(w)) for c, f, w in zip(choices, fine, widths, strict=True)]
    if any(len(set(n.widths) - set(c.widths)) for n, c in zip(near, choices, strict=True)):
        widths = _within(problem, near, layers)

    # The program is indifferent to what costs nothing to lose, as groups that fade; they may grow again.
    def rank(index: int, width: int) -> tuple[float, float]:
        choice = fine[index]
        return float(choice.lost[width] - choice.lost[choice.wider(width)]), -width / max(choice.widths[-1], 1)

    return removed_at(problem, fine, filled(problem, fine, widths, rank))


def _near(coarse: Choice, fine: Choice, chosen: int) -> Choice:
    """The widths between the coarse ones on both sides of the chosen one."""
    at = coarse.widths.index(chosen)
    low = coarse.widths[max(0, at - 1)]
    high = coarse.widths[min(len(coarse.widths) - 1, at + 1)]
    widths = [width for width in fine.widths if low <= width <= high or width == 0]
    if len(widths) > _FINE:
        widths = [widths[i] for i in np.unique(np.linspace(0, len(widths) - 1, _FINE).round().astype(int))]
    return Choice(fine.order, fine.lost, tuple(sorted({*widths, chosen})))


def _within(problem: Problem, choices: list[Choice], layers: dict[str, list[Layer]]) -> np.ndarray:
    """The best widths, (n_sets,), within every budget. What the program only approximates is corrected by counting."""
    budgets = {unit: limit_of(problem, unit) for unit in problem.budgets}
    program = Program(choices, _linked(problem), _secondary(layers))
    for unit, found in layers.items():
        program.limit(unit, found)
    widths: np.ndarray | None = None
    for attempt in range(_CORRECTIONS):
        try:
            widths = program.solve(budgets)
        except Infeasible as error:
            if widths is None:
                raise _unreachable(problem, choices) from error
            break
        kept = ~removed_at(problem, choices, widths)
        if problem.fits(kept):
            return widths
        over = {unit: cost / problem.budgets[unit] for unit, cost in problem.count(kept).items()}
        # Twice as far each time: what is approximated does not always follow.
        margin = _MARGIN * 2**attempt
        budgets = {
            unit: budget / (over[unit] * (1 + margin)) if over[unit] > 1 else budget for unit, budget in budgets.items()
        }
    return _narrowed(problem, choices, widths)


def _narrowed(problem: Problem, choices: list[Choice], widths: np.ndarray | None) -> np.ndarray:
    """(n_sets,) widths within every budget, from ones that are close to it: what costs least to lose goes first."""
    found = np.array([choice.widths[-1] for choice in choices]) if widths is None else widths.copy()
    while not problem.fits(~removed_at(problem, choices, found)):
        steps = [
            (c.lost[c.narrower(int(w))] - c.lost[w], i) for i, (c, w) in enumerate(zip(choices, found, strict=True))
        ]
        steps = [step for step in steps if choices[step[1]].narrower(int(found[step[1]])) < found[step[1]]]
        if not steps:
            raise _unreachable(problem, choices)
        index = min(steps)[1]
        found[index] = choices[index].narrower(int(found[index]))
    return found


def _secondary(layers: dict[str, list[Layer]]) -> list[Layer]:
    """Of allocations that lose as much, the quicker one."""
    return layers.get(LATENCY, [])


def _linked(problem: Problem) -> list[tuple[int, int]]:
    """(s, t): where set s goes as a whole, so does t, which is computed for it alone or from it alone."""
    pairs = []
    for group_set in problem.graph.sets:
        if not group_set.bypassed:
            continue
        fates = problem.graph.flow.fates(frozenset({group_set.index}))
        for other in sorted(problem.graph.flow.unreached(fates or {})):
            if other != group_set.index:
                pairs.append((group_set.index, other))
    return pairs


def _unreachable(problem: Problem, choices: list[Choice]) -> BudgetError:
    least = np.array([choice.widths[0] for choice in choices])
    smallest, dense = problem.count(~removed_at(problem, choices, least)), count_dense(problem.graph, problem.latency)
    for unit, budget in problem.budgets.items():
        if smallest[unit] > budget and unit == LATENCY:
            return BudgetError(
                f"with everything removed that may go, the network is {dense[unit] / smallest[unit]:.3g} times as fast "
                "by prediction; ask for less than that"
            )
        if smallest[unit] > budget:
            return BudgetError(
                f"a share of {budget / dense[unit]:.3g} of the {unit} cannot be reached: with everything removed that "
                f"may go, {smallest[unit] / dense[unit]:.3g} of it remains; ask for more than that"
            )
    return BudgetError("the budgets cannot all be reached at once: ask for more of one of them")
