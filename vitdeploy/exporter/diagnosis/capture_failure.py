"""Why a module cannot be captured: torch's reason, the line of the user's code, and what to write there instead.

Where a dynamic batch becomes a constant, torch says so at the end, without a line. It notes each condition on the batch
in its log when it meets it, though, in the midst of the call that needs it: there the stack shows the user's line.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vitdeploy.errors import ExportError
from vitdeploy.exporter.torch_network import own_frames

log = logging.getLogger(__name__)

_SHAPES = "torch.fx.experimental.symbolic_shapes"
_DATA_DEPENDENT = re.compile(r"data.dependent|GuardOnDataDependent|Dynamic control flow", re.IGNORECASE)

# What a line that ties the batch to a number may contain, and what says the same without that.
_INSTEAD = (
    (
        re.compile(r"\bint\s*\("),
        "whole-number arithmetic on the shape, x.shape[0] // n, instead of int(x.shape[0] / n)",
    ),
    (re.compile(r"\blen\s*\("), "x.shape[0] instead of len(x)"),
    (re.compile(r"^\s*(if|elif|while|assert)\b|\bif\b"), "code without a branch on the batch, or torch.where"),
    (re.compile(r"\bfor\b|\brange\s*\("), "one operation on the whole batch instead of a loop over its samples"),
    (re.compile(r"\b(view|reshape|expand|unflatten)\b"), "x.shape[0] or -1 for the batch in this shape"),
)
_ANY = "parameters and shapes that do not hold a batch, such as x.shape[0] or -1 in their place"


@dataclass(frozen=True)
class Line:
    """A line of the user's code: where it is, as `FILE:LINE`, and its text."""

    place: str
    text: str


@dataclass(eq=False)
class _Conditions(logging.Handler):
    """Notes the user's line for each condition on a size, until a size has become a constant."""

    lines: list[Line | None] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self.done:
            return
        if "[guard added]" in message:
            self.lines.append(_line(traceback.extract_stack()))
        self.done = message.startswith("set_replacement") and "singleton" in message


def capture_failure(name: str, error: Exception, *, free: Sequence[str], again: Callable[[], object]) -> ExportError:
    """The error for a module `name` whose capture ended with `error`; `again` captures it once more.

    `free` are the names of the axes whose length was to stay free.
    """
    batch_alone = list(free) in ([], ["batch"])
    kind = f"a {'dynamic' if free else 'fixed'} batch" if batch_alone else f"the free axes {', '.join(free)}"
    chain = list(_chain(error))
    reason = next((_first_line(one) for one in reversed(chain) if _first_line(one)), type(error).__name__)
    line = next(filter(None, (_line(traceback.extract_tb(one.__traceback__)) for one in reversed(chain))), None)
    data_dependent = any(_DATA_DEPENDENT.search(f"{type(one).__name__} {one}") for one in chain)
    if free and not data_dependent:
        line = _condition(again) or line
        fix = f"{_instead(line)}; or {'--batch 1' if batch_alone else 'numbers in --input'}"
    elif data_dependent:
        fix = "tensor operations, such as torch.where or a mask, instead of Python that looks at the values of a tensor"
    else:
        fix = "replace the data-dependent Python in forward by tensor operations"
    where = f"{line.place} ({line.text}): " if line else ""
    return ExportError(f"{name} cannot be captured for {kind}", why=f"{where}{reason}", fix=fix)


def _condition(again: Callable[[], object]) -> Line | None:
    """The line of the user's code that makes the batch a constant; None where no condition passes through any."""
    conditions, logger = _Conditions(), logging.getLogger(_SHAPES)
    level, propagates, handlers = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [conditions], False
    logger.setLevel(logging.INFO)
    try:
        again()
    except Exception:  # it failed before, and is expected to fail again
        log.debug("captured again for its conditions", exc_info=True)
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
    return next(filter(None, reversed(conditions.lines)), None)


def _instead(line: Line | None) -> str:
    return next((words for pattern, words in _INSTEAD if line and pattern.search(line.text)), _ANY)


def _line(stack: traceback.StackSummary) -> Line | None:
    own = own_frames(stack)
    return Line(f"{own[-1].filename}:{own[-1].lineno}", (own[-1].line or "").strip()[:160]) if own else None


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
