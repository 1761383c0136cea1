"""Values, trees and bytes that nobody expects, all drawn from one generator, so that a seed gives the same ones."""

from __future__ import annotations

import copy
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**63, 2**70, -(2**63), 10**400),
    *(0.0, -0.0, 1.5, 1e308, -1e308, 1e-300, 5e-324),
    *("", " ", "x", "logits", "images", "float32", "object", "a\0b", "../x", "/etc/passwd", "é", "\ud800", "\x1b[2J"),
    *("int8", "fp16", "batch", "$(id)", "%s%n", "9" * 40, "y" * 5000),
    *([], {}, [[]], [None], {"": 0}, [1, "a"], [0, 0], [-1, -1], [2**40, 2**40], ["x"] * 4),
)


def strange(rng: random.Random) -> Any:
    """One value, which may be changed."""
    return copy.deepcopy(rng.choice(STRANGE))


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def change_tree(tree: Any, rng: random.Random) -> None:
    """Replace, drop, double, rename or exchange one value somewhere in a JSON tree."""
    known = places(tree)
    if not known:
        return
    container, key = rng.choice(known)
    kind = rng.randrange(5)
    if kind == 0:
        container[key] = strange(rng)
    elif kind == 1:
        del container[key]
    elif kind == 2:
        other, place = rng.choice(known)
        try:
            container[key] = copy.deepcopy(other[place])
        except (KeyError, IndexError):
            container[key] = strange(rng)
    elif kind == 3 and isinstance(container, dict):
        container[rng.choice(("x", "", f"{key} ", str(strange(rng))))] = container.pop(key)
    elif isinstance(container, list):
        container.extend([container[key]] * rng.choice((1, 2, 100)))
    else:
        value = container[key]
        container[key] = -value if isinstance(value, (int, float)) else [value]


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, zero or insert some bytes."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 40))):
        at = rng.randrange(len(found) + 1) if found else 0
        kind = rng.randrange(6)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at : at + rng.choice((1, 4, 64))]
        elif kind == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 3:
            found[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
        elif kind == 4:
            del found[at:]
        else:
            found[at:at] = found[at : at + rng.choice((4, 32, 256))]
    return bytes(found)
