"""Allocations found by trying them out: policies that search, without labels and without training.

    random, bee colony, DDPG -> widths within the budget -> one-shot cut, BatchNorm re-estimated -> agreement -> reward

A policy is one file; what all of them share is the space of allocations (`space`), the reward (`rewards`) and the
record of what was tried (`trials`).
"""

from graphprune.search.options import Search, SearchOptions, Trial

__all__ = ["Search", "SearchOptions", "Trial"]
