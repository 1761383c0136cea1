"""Few combinations of a property's parameters in which any two values still meet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of one value a parameter that hold every pair of values of two parameters at least once.

    Rows are found greedily and are the same in every run: each begins with a pair that is still missing, and every
    further parameter takes the value that adds most of the missing pairs.
    """
    choices = [[(name, index) for index in range(len(values[name]))] for name in values]
    missing = {frozenset(pair) for a, b in combinations(choices, 2) for pair in product(a, b)}
    rows: list[dict[str, Any]] = []
    while missing:
        row = set(min(missing, key=sorted))
        for options in choices:
            if not row & set(options):
                row.add(max(options, key=lambda option: sum(frozenset((option, other)) in missing for other in row)))
        missing -= {frozenset(pair) for pair in combinations(row, 2)}
        rows.append({name: values[name][index] for name, index in sorted(row)})
    return rows
