"""Versions as numbers, and conditions on them: `>=10.4,<10.6`, `==10.3.*`."""

from __future__ import annotations

import re

Version = tuple[int, ...]


def dotted(version: Version) -> str:
    """10.3 for (10, 3)."""
    return ".".join(map(str, version))


def version_matches(version: str, conditions: str) -> bool:
    """Whether `version` fulfils every one of `conditions`, separated by commas; only leading numbers count.

    A version without any, such as `unknown`, fulfils none but an empty list. A bound of 10.2.0 is met by 10.2.0.19:
    TensorRT's packages count builds in the fourth place. ValueError for what is no condition.
    """
    asked = [condition.strip() for condition in conditions.split(",") if condition.strip()]
    return all(_holds(_numbers(version), condition) for condition in asked)


def _numbers(version: str) -> Version:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _holds(version: Version, condition: str) -> bool:
    parsed = re.fullmatch(r"(==|!=|>=|<=|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?", condition)
    if parsed is None:
        raise ValueError(f"{condition!r} is not a condition on a version")
    if not version:
        return False
    operator, bound = parsed[1], _numbers(parsed[2])
    if parsed[3]:
        same = version[: len(bound)] == bound
        return same if operator == "==" else not same
    length = max(len(bound), min(len(version), 3))
    left, right = (numbers[:length] + (0,) * (length - len(numbers)) for numbers in (version, bound))
    return {
        "==": left == right,
        "!=": left != right,
        ">=": left >= right,
        "<=": left <= right,
        "<": left < right,
        ">": left > right,
    }[operator]
