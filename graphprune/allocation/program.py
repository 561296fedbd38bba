"""The knapsack as a mixed-integer linear program, for HiGHS."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix, csr_matrix

from graphprune.allocation.choices import Choice
from graphprune.allocation.resources import Layer
from graphprune.runtime.stdout import nothing_printed
from graphprune.widths import Axis

__all__ = ["Infeasible", "Program", "Unsolved"]

_GAP = 0.005
_NODES, _USUAL, _FEWEST_NODES = 3000, 5000, 50  # and the number of variables up to which it is so many
_STOPPED, _INFEASIBLE = 1, 2  # status of a search that came to the limit, or to the end
_TIE = 1e-4  # weight of the latency beside what is lost


class Unsolved(Exception):
    """The solver gave up."""


class Infeasible(Unsolved):
    """No choice of widths meets the budgets."""


class Program:
    """Variables, constraints and prices; solved for budgets that may change.

    Args:
        choices: widths of every set, and what is lost at each.
        linked: (s, t): width 0 of set s asks for width 0 of set t.
        secondary: what decides between choices that lose as much.
        sums: values of a length that several sets add up to; beyond that it is interpolated
        grid: between so many.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        linked: Sequence[tuple[int, int]],
        secondary: Sequence[Layer],
        sums: int = 40,
        grid: int = 16,
    ) -> None:
        self.choices = choices
        self._sums, self._grid = sums, grid
        self._rows: list[tuple[list[int], list[float], float, float]] = []
        self._upper: dict[int, float] = {}
        self._offsets = np.concatenate([[0], np.cumsum([len(c.widths) for c in choices])])
        self.n = int(self._offsets[-1])
        self._whole = [True] * self.n
        self._axes: dict[Axis, tuple[list[int], list[float]]] = {}
        self._pairs: dict[tuple[Axis, Axis], np.ndarray] = {}
        self._prices: dict[str, tuple[dict[int, float], float]] = {}
        for index in range(len(choices)):
            variables = self._of_set(index)
            self._row(variables, [1.0] * len(variables), 1.0, 1.0)
        for first, second in linked:
            self._link(first, second)
        self._tie = self._price(secondary)[0]

    def _of_set(self, index: int) -> list[int]:
        return list(range(int(self._offsets[index]), int(self._offsets[index + 1])))

    def _row(self, variables: Sequence[int], factors: Sequence[float], low: float, high: float) -> None:
        self._rows.append((list(variables), list(factors), low, high))

    def _new(self, number: int, whole: bool) -> list[int]:
        fresh = list(range(self.n, self.n + number))
        self.n += number
        self._whole += [whole] * number
        return fresh

    def _link(self, first: int, second: int) -> None:
        """Width 0 of one set only with width 0 of another."""
        if self.choices[first].widths[0] != 0:
            return
        gone = int(self._offsets[first])
        if self.choices[second].widths[0] == 0:
            self._row([int(self._offsets[second]), gone], [1.0, -1.0], 0.0, np.inf)
        else:
            self._upper[gone] = 0.0

    # -- lengths ---------------------------------------------------------------------------------------------------

    def _axis(self, axis: Axis) -> tuple[list[int], list[float]]:
        """Variables of which one is 1, and the length that each stands for."""
        if axis not in self._axes:
            if len(axis.terms) == 1:
                (index, each) = axis.terms[0]
                lengths = [axis.fixed + each * width for width in self.choices[index].widths]
                self._axes[axis] = (self._of_set(index), lengths)
            else:
                self._axes[axis] = self._sum(axis)
        return self._axes[axis]

    def _sum(self, axis: Axis) -> tuple[list[int], list[float]]:
        lengths = {axis.fixed}
        for index, each in axis.terms:
            lengths = {length + each * width for length in lengths for width in self.choices[index].widths}
            if len(lengths) > 50 * self._sums:
                lengths = set(np.linspace(min(lengths), max(lengths), self._grid).tolist())
        found = sorted(lengths)
        is_exact = len(found) <= self._sums
        if not is_exact:
            found = np.linspace(found[0], found[-1], self._grid).tolist()
        variables = self._new(len(found), is_exact)
        self._row(variables, [1.0] * len(found), 1.0, 1.0)
        columns, factors = list(variables), list(found)
        for index, each in axis.terms:
            columns += self._of_set(index)
            factors += [-each * width for width in self.choices[index].widths]
        self._row(columns, factors, axis.fixed, axis.fixed)
        return variables, found

    def _pair(self, first: Axis, second: Axis) -> np.ndarray:
        """(lengths of first, lengths of second) variables with those of both axes as their marginals."""
        if (first, second) not in self._pairs:
            rows, columns = self._axis(first)[0], self._axis(second)[0]
            both = np.array(self._new(len(rows) * len(columns), False)).reshape(len(rows), len(columns))
            for at, variable in enumerate(rows):
                self._row([*both[at], variable], [1.0] * len(columns) + [-1.0], 0.0, 0.0)
            for at, variable in enumerate(columns):
                self._row([*both[:, at], variable], [1.0] * len(rows) + [-1.0], 0.0, 0.0)
            self._pairs[(first, second)] = both
        return self._pairs[(first, second)]

    # -- prices ----------------------------------------------------------------------------------------------------

    def limit(self, unit: str, layers: Sequence[Layer]) -> None:
        """Let the sum of `layers` be what the budget of `unit` limits."""
        self._prices[unit] = self._price(layers)

    def _price(self, layers: Sequence[Layer]) -> tuple[dict[int, float], float]:
        """Variable -> price, and what is paid in any case."""
        prices: dict[int, float] = {}
        constant = 0.0
        for layer in layers:
            if not layer.axes:
                constant += layer.cost(())
                continue
            entries: list[tuple[int, tuple[float, ...]]] = []
            if len(layer.axes) == 1:
                variables, lengths = self._axis(layer.axes[0])
                entries += [(v, (length,)) for v, length in zip(variables, lengths, strict=True)]
            else:
                first, second = sorted(layer.axes, key=lambda axis: (axis.terms, axis.fixed))
                both, swapped = self._pair(first, second), first != layer.axes[0]
                entries += [
                    (int(both[i, j]), (b, a) if swapped else (a, b))
                    for i, a in enumerate(self._axis(first)[1])
                    for j, b in enumerate(self._axis(second)[1])
                ]
            for variable, at in entries:
                prices[variable] = prices.get(variable, 0.0) + layer.cost(at)
        return prices, constant

    # -- solving ---------------------------------------------------------------------------------------------------

    def solve(self, budgets: Mapping[str, float]) -> np.ndarray:
        """(n_sets,) the widths that lose least within the budgets.

        Raises:
            Infeasible: there are none.
            Unsolved: the solver had trouble with the numbers.
        """
        lost = np.zeros(self.n)
        for index, choice in enumerate(self.choices):
            lost[self._of_set(index)] = choice.losses
        scale = max(float(lost.max(initial=0.0)), 1e-300)
        objective = lost / scale
        for variable, price in self._tie.items():
            objective[variable] += _TIE * price
        matrix, low, high = self._matrix(budgets)
        upper = np.ones(self.n)
        upper[list(self._upper)] = 0.0
        nodes, result = self._nodes(), None
        while result is None or (result.x is None and result.status == _STOPPED):
            with nothing_printed():
                result = milp(
                    objective,
                    constraints=LinearConstraint(matrix, low, high),
                    integrality=np.array(self._whole, dtype=float),
                    bounds=Bounds(0, upper),
                    options={"mip_rel_gap": _GAP, "node_limit": nodes},
                )
            nodes *= 10
        if result.x is None:
            raise Infeasible if result.status == _INFEASIBLE else Unsolved
        return np.array(
            [c.widths[int(np.argmax(result.x[self._of_set(index)]))] for index, c in enumerate(self.choices)]
        )

    def _nodes(self) -> int:
        """Nodes to look at: fewer where each is a large linear program."""
        return int(np.clip(_NODES * _USUAL / self.n, _FEWEST_NODES, _NODES))

    def _matrix(self, budgets: Mapping[str, float]) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
        rows = list(self._rows)
        for unit, budget in budgets.items():
            prices, constant = self._prices[unit]
            rows.append((list(prices), [p / budget for p in prices.values()], -np.inf, 1.0 - constant / budget))
        at = np.concatenate([np.full(len(row[0]), number) for number, row in enumerate(rows)])
        columns = np.concatenate([np.asarray(row[0]) for row in rows])
        values = np.concatenate([np.asarray(row[1], dtype=float) for row in rows])
        matrix = coo_matrix((values, (at, columns)), shape=(len(rows), self.n)).tocsr()
        return matrix, np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
