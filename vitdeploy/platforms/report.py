"""What `check` found out about a bundle on a platform, as values and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitdeploy.platforms.boards import Platform
from vitdeploy.platforms.versions import dotted

BLOCKS, WARNS = "blocks", "warns"
# The words of every report about fusion: by rules, of an engine, and by NVIDIA's compiler.
ATTENTION, LAYER_NORM, GELU = "attention", "layer norm", "GELU"
FUSION_STATES = {True: "fused", False: "not fused", None: "unknown"}
MAX_LOADABLES = 16  # that a core of the accelerator holds


@dataclass(frozen=True)
class Rule:
    """One condition: `holds` is None where the sources do not say; `fix` is what to change where it does not hold."""

    name: str
    holds: bool | None
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether INT8 can beat FP16, as far as rules can tell without a GPU: `no` or `measure`."""

    answer: str
    reason: str


@dataclass(frozen=True)
class Block:
    """An attention block or a layer norm: what it is, the type it computes in, and the rules."""

    name: str
    shape: str
    precision: str
    rules: tuple[Rule, ...]
    int8: Verdict | None = None

    @property
    def fuses(self) -> bool | None:
        """True where every rule holds, False where one does not, None where the sources do not say."""
        states = {rule.holds for rule in self.rules}
        return False if False in states else None if None in states else True

    @property
    def open_rules(self) -> tuple[Rule, ...]:
        """The rules that do not hold, or may not."""
        return tuple(rule for rule in self.rules if not rule.holds)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "shape": self.shape,
            "precision": self.precision,
            "fuses": self.fuses,
            "rules": [{"rule": r.name, "holds": r.holds, "detail": r.detail, "fix": r.fix} for r in self.rules],
            "int8": None if self.int8 is None else {"answer": self.int8.answer, "reason": self.int8.reason},
        }


@dataclass(frozen=True)
class Int8Report:
    """What INT8 can bring to the whole network.

    share    part of the multiply-accumulates in layers that gain from INT8
    bound    how many times faster than FP16 the network's products can become at best
    obstacles  multiply-accumulates by the reason why INT8 is not for them
    """

    verdict: Verdict
    share: float
    bound: float
    quantized: int
    obstacles: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "answer": self.verdict.answer,
            "reason": self.verdict.reason,
            "share": round(self.share, 4),
            "bound": round(self.bound, 3),
            "quantized_layers": self.quantized,
            "obstacles": self.obstacles,
        }


@dataclass(frozen=True)
class DlaReport:
    """What an accelerator could do.

    missing    why the platform has none; None where it has one
    on, total  layers that it could compute, and all
    off        number of layers that it could not, by operator and reason
    loadables  stretches of layers that it could compute between others
    """

    missing: str | None
    on: int = 0
    total: int = 0
    off: tuple[tuple[str, int], ...] = ()
    loadables: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        facts = {"on": self.on, "total": self.total, "off": dict(self.off), "loadables": self.loadables}
        return {"missing": self.missing, **facts}

    def __str__(self) -> str:
        if self.missing:
            return f"DLA: none, {self.missing}"
        lines = [f"DLA: {self.on} of {self.total} layers at most, in {self.loadables} stretches; not recommended"]
        if self.loadables > MAX_LOADABLES:
            lines[0] += f" (a core holds {MAX_LOADABLES} loadables)"
        return "\n".join([*lines, *(f"       {count} not: {reason}" for reason, count in self.off)])


@dataclass(frozen=True)
class Finding:
    """Something the platform does not take (`blocks`) or takes with a catch (`warns`)."""

    level: str
    where: str
    what: str
    fix: str
    source: str


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; `str()` is for people.

    Attributes:
        bundle: Its folder.
        model: The name of the network.
        precision: `fp32`, `fp16` or `int8`.
        platform: The TensorRT version or board that was asked about.
        findings: What blocks the build, what is known to be wrong, and what to look at; each names its source.
        attentions: Every attention block, and whether it becomes one kernel.
        layer_norms: Every layer norm, and whether it becomes one kernel.
        int8: Whether INT8 can be faster than FP16 there.
        dla: What the deep learning accelerator of the board could compute; None where it has none.
    """

    bundle: str
    model: str
    precision: str
    platform: Platform
    findings: tuple[Finding, ...]
    attentions: tuple[Block, ...]
    layer_norms: tuple[Block, ...]
    int8: Int8Report
    dla: DlaReport | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing keeps the engine from being built."""
        return not any(finding.level == BLOCKS for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "passed": self.passed,
            "bundle": self.bundle,
            "model": self.model,
            "precision": self.precision,
            "platform": {
                **asdict(self.platform),
                "oldest": dotted(self.platform.oldest),
                "newest": dotted(self.platform.newest),
                "sm": None if self.platform.sm is None else dotted(self.platform.sm),
            },
            "findings": [asdict(finding) for finding in self.findings],
            "attentions": [block.to_dict() for block in self.attentions],
            "layer_norms": [block.to_dict() for block in self.layer_norms],
            "int8": self.int8.to_dict(),
            "dla": None if self.dla is None else self.dla.to_dict(),
        }

    @property
    def verdict(self) -> str:
        """The answer in a line: whether it builds, what fuses, and whether INT8 is worth a measurement."""
        blocking = sum(finding.level == BLOCKS for finding in self.findings)
        warnings = len(self.findings) - blocking
        parts = [f"{'builds' if self.passed else 'does not build'} on {self.platform.name}, by the rules"]
        parts += [_count(blocking, "finding blocks", "findings block")] if blocking else []
        parts += [_count(warnings, "warning", "warnings")] if warnings else []
        parts += [f"{ATTENTION} {_states(self.attentions)}"] if self.attentions else []
        parts += [f"INT8 against FP16: {self.int8.verdict.answer}"]
        return "; ".join(parts)

    def __str__(self) -> str:
        lines = [self.verdict, f"{self.bundle}: {self.model}, {self.precision}, for {_describe(self.platform)}"]
        for finding in sorted(self.findings, key=lambda f: f.level):
            lines += [f"{finding.level:7}{finding.where}: {finding.what} ({finding.source})", f"       {finding.fix}"]
        lines += _section(ATTENTION, self.attentions) + _section(LAYER_NORM, self.layer_norms)
        verdict = self.int8.verdict
        lines.append(f"INT8 against FP16: {verdict.answer}; {verdict.reason}")
        lines += [f"       {macs / 1e6:,.0f} M not for INT8: {why}" for why, macs in self.int8.obstacles.items()]
        lines += [] if self.dla is None else [str(self.dla)]
        return "\n".join(lines)


def _describe(platform: Platform) -> str:
    parts = [platform.name, platform.versions]
    if platform.jetpack:
        parts += [f"JetPack {platform.jetpack}", f"CUDA {platform.cuda}", f"Python {platform.python}"]
    return ", ".join(parts)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _states(blocks: Sequence[Block]) -> str:
    """`29 fused, 1 unknown`."""
    states = Counter(block.fuses for block in blocks)
    return ", ".join(f"{states[state]} {word}" for state, word in FUSION_STATES.items() if states[state])


def _section(title: str, blocks: Sequence[Block]) -> list[str]:
    """One paragraph for each set of blocks that are alike but for their names, and layer norms for their shapes.

    What all of them have in common of INT8 is said once.
    """
    if not blocks:
        return []
    lines = [f"{title} by the rules: {_states(blocks)}"]
    verdicts = {block.int8 for block in blocks}
    common = next(iter(verdicts)) if len(verdicts) == 1 else None
    if common is not None:
        lines.append(f"  INT8: {common.answer}; {common.reason}")
    alike: dict[tuple[Any, ...], list[Block]] = {}
    for block in blocks:
        alike.setdefault((block.shape if block.int8 else "", block.precision, block.rules, block.int8), []).append(
            block
        )
    for same in alike.values():
        first = same[0]
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        shape = f"{first.shape}, " if first.int8 else ""
        lines.append(f"  {first.precision}, {shape}{first.name}{more}: {FUSION_STATES[first.fuses]}")
        lines += [f"    {r.name}: {r.detail}; {r.fix or 'nothing is known to change that'}" for r in first.open_rules]
        if first.int8 is not None and common is None:
            lines.append(f"    INT8: {first.int8.answer}; {first.int8.reason}")
    return lines
