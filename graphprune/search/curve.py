"""The course of a search, drawn: the reward of every evaluation, and the best so far."""

from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["draw_curve"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 360, 64, 20, 48, 44
_TICKS = 5


def draw_curve(rewards: Sequence[float], policy: str) -> str:
    """An SVG drawing: a dot for each evaluation, a line for the best so far."""
    values = np.asarray(rewards, dtype=float)
    # Few very bad ones would press the rest into a line; they lie on the lower edge.
    low, high = float(np.quantile(values, 0.02)), float(values.max())
    span = max(high - low, 1e-6)
    low, high = low - 0.05 * span, high + 0.05 * span
    best = np.maximum.accumulate(values)

    def x(index: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * index / max(len(values), 1)

    def y(reward: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - min(max(reward, low), high)) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="28" font-size="15">{escape(policy)}: reward of {len(values)} evaluations, best '
        f"{best[-1]:.4f}</text>",
    ]
    for tick in np.linspace(low, high, _TICKS):
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.3f}</text>'
        )
    for tick in np.unique(np.linspace(1, len(values), _TICKS).round().astype(int)):
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 6}" text-anchor="middle">evaluation</text>')
    parts += [
        f'<circle cx="{x(index + 1):.1f}" cy="{y(value):.1f}" r="2" fill="#7a9cc6"/>'
        for index, value in enumerate(values)
    ]
    line = " ".join(f"{x(index + 1):.1f},{y(value):.1f}" for index, value in enumerate(best))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#c0392b" stroke-width="1.5"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
