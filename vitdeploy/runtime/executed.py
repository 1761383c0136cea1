"""What a runtime makes of a model, as every backend tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ExecutedGraph:
    """What a runtime executes.

    operators  operator (or layer) type to number
    precision  element type that is computed in to number of operators; empty where the runtime does not say
    fused      the runtime's own operators, which stand for several of the model's
    attention  one entry for each attention of the model: `block`, `fused` and `runs_as`
    skipped    why nothing is known, and the command that helps; None where something is
    """

    runtime: str
    version: str = ""
    operators: Mapping[str, int] = field(default_factory=dict)
    precision: Mapping[str, int] = field(default_factory=dict)
    fused: Mapping[str, int] = field(default_factory=dict)
    attention: tuple[Mapping[str, Any], ...] = ()
    skipped: str | None = None

    @property
    def attention_fused(self) -> int:
        """How many attentions became one kernel."""
        return sum(bool(block["fused"]) for block in self.attention)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "attention_fused": self.attention_fused}


def count(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first."""
    return dict(Counter(names).most_common())
