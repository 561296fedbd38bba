"""Policy "knapsack": the widths of all sets at once, so that least is lost within every budget.

    min  sum_s sum_k  lost_sk x_sk        x_sk = 1: set s keeps its k-th width        sum_k x_sk = 1
    s.t. sum_l cost_l(n_a, n_b) <= budget                          for every unit with a budget

A multiple-choice knapsack whose items have prices in pairs: a layer's time depends on the widths of the sets on both of
its sides. Each pair of lengths that share a layer gets variables y_ij >= 0 with x_i and x_j as their marginals (the
local polytope of a pairwise model), in which every cost is linear. A length that several sets add up to has variables
of its own, tied to theirs. Solved by HiGHS to a gap of 0.5 %, limited by nodes and not by time, so that it is
repeatable. Widths are looked at coarsely first, then closely around what was found; more coarsely in networks where the
program would become too large to be solved in seconds.

Source: multiple-choice knapsack for latency, HALP (Shen et al. 2022); linearization of products, Fortet 1960.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.allocation.choices import Choice, choices_of, filled, removed_at
from graphprune.allocation.problem import LATENCY, Problem, count_dense
from graphprune.allocation.program import Infeasible, Program, Unsolved
from graphprune.allocation.resources import Layer, layers_of, limit_of
from graphprune.allocation.steps import on_steps, open_choices
from graphprune.passes.errors import BudgetError

__all__ = ["knapsack"]

logger = logging.getLogger("graphprune")


@dataclass(frozen=True)
class _Resolution:
    """Widths of a set, at first and around what was found; values of a length that several sets add up to."""

    coarse: int
    fine: int
    sums: int
    grid: int


_RESOLUTIONS = (_Resolution(12, 9, 40, 16), _Resolution(8, 7, 16, 8), _Resolution(6, 5, 12, 8), _Resolution(4, 4, 8, 6))
_LARGEST = 4000  # variables of a program
_CORRECTIONS = 8
_MARGIN = 0.0005  # share of a budget


def knapsack(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,).

    Raises:
        BudgetError: a budget cannot be reached.
    """
    layers = {unit: layers_of(problem, unit) for unit in sorted(problem.budgets)}

    def coarse(resolution: _Resolution) -> list[Choice]:
        found = choices_of(problem, resolution.coarse)
        return on_steps(problem, found) if problem.is_on_steps else found

    program = _program(problem, coarse, layers)
    choices, widths, fine = program.choices, _within(problem, program), open_choices(problem)

    def near(resolution: _Resolution) -> list[Choice]:
        return [_near(c, f, int(w), resolution.fine) for c, f, w in zip(choices, fine, widths, strict=True)]

    program = _program(problem, near, layers)
    if any(set(n.widths) - set(c.widths) for n, c in zip(program.choices, choices, strict=True)):
        widths = _within(problem, program, widths)

    # The program is indifferent to what costs nothing to lose, as groups that fade; they may grow again.
    def rank(index: int, width: int) -> tuple[float, float]:
        choice = fine[index]
        return float(choice.lost[width] - choice.lost[choice.wider(width)]), -width / max(choice.widths[-1], 1)

    return removed_at(problem, fine, filled(problem, fine, widths, rank))


def _program(
    problem: Problem, choices: Callable[[_Resolution], list[Choice]], layers: dict[str, list[Layer]]
) -> Program:
    """The program at the highest resolution at which it is not too large."""
    linked = _linked(problem)
    for resolution in _RESOLUTIONS:
        program = Program(choices(resolution), linked, _secondary(layers), resolution.sums, resolution.grid)
        for unit, found in layers.items():
            program.limit(unit, found)
        if program.n <= _LARGEST:
            break
    return program


def _near(coarse: Choice, fine: Choice, chosen: int, most: int) -> Choice:
    """The widths between the coarse ones on both sides of the chosen one."""
    at = coarse.widths.index(chosen)
    low = coarse.widths[max(0, at - 1)]
    high = coarse.widths[min(len(coarse.widths) - 1, at + 1)]
    widths = [width for width in fine.widths if low <= width <= high or width == 0]
    if len(widths) > most:
        widths = [widths[i] for i in np.unique(np.linspace(0, len(widths) - 1, most).round().astype(int))]
    return Choice(fine.order, fine.lost, tuple(sorted({*widths, chosen})))


def _within(problem: Problem, program: Program, widths: np.ndarray | None = None) -> np.ndarray:
    """The best widths, (n_sets,), within every budget. What the program only approximates is corrected by counting.

    Where it is not solved, the widths given (or all) are narrowed step by step.
    """
    budgets = {unit: limit_of(problem, unit) for unit in problem.budgets}
    choices = program.choices
    for attempt in range(_CORRECTIONS):
        try:
            widths = program.solve(budgets)
        except Infeasible as error:
            if widths is None:
                raise _unreachable(problem, choices) from error
            break
        except Unsolved:
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


def _narrowed(problem: Problem, choices: Sequence[Choice], widths: np.ndarray | None) -> np.ndarray:
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


def _smallest(problem: Problem, choices: Sequence[Choice]) -> dict[str, float]:
    """Costs with the narrowest widths of all sets, in the units of the budgets."""
    return problem.count(~removed_at(problem, choices, np.array([choice.widths[0] for choice in choices])))


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


def _unreachable(problem: Problem, choices: Sequence[Choice]) -> BudgetError:
    smallest, dense = _smallest(problem, choices), count_dense(problem.graph, problem.latency)
    if problem.is_on_steps:
        off_steps = _smallest(problem, choices_of(problem, None))
        if all(off_steps[unit] <= budget for unit, budget in problem.budgets.items()):
            return BudgetError(
                "the budget cannot be reached with align='auto': too few of the narrower widths are faster on this "
                "machine; leave it out, or ask for more"
            )
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
