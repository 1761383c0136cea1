"""What NVIDIA's parser and compiler made of a model, as values and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitdeploy.tensorrt.fusion import FusionReport
from vitdeploy.tensorrt.rtx.compiler import BUILT
from vitdeploy.tensorrt.rtx.requirements import NAME
from vitdeploy.tensorrt.rtx.roofline import Roofline
from vitdeploy.tensorrt.rtx.units import mebibytes

CARRIES_OVER = (
    "the ONNX parser and the graph compiler are of the TensorRT 10 and 11 line, so what they refuse and which blocks "
    "they fuse in a strongly typed network says much about those"
)
DOES_NOT = (
    "the kernels that a board chooses, times, numbers, DLA, and the older TensorRT 8; plug-ins (NonZero, DeformConv) "
    "are missing here alone, and it does not compile for Orin (8.7): `vitdeploy build BUNDLE` on the board decides"
)
_SHORT = 400  # characters of a message on the screen; --json has all of it


@dataclass(frozen=True)
class Refusal:
    """A node that the parser refuses, the module of the network that it belongs to, and what to do."""

    node: str
    operator: str
    module: str
    code: str
    why: str
    fix: str

    def __str__(self) -> str:
        module = f", of module {self.module}" if self.module else ""
        node = f"{self.operator} {self.node}".strip()
        return f"refused {node}{module}: {_short(self.why)}\n        {self.fix}"


@dataclass(frozen=True)
class Failure:
    """A model that the parser takes and the compiler does not get through.

    message    the compiler's last words
    fix        what to do
    subgraph   file with the smallest part of the graph that still fails; None where none was looked for
    nodes      its nodes, as operator and name
    modules    the modules of the network that they belong to
    """

    message: str
    fix: str
    subgraph: str | None = None
    nodes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def lines(self, state: str) -> list[str]:
        """The failure as text."""
        found = [f"the compiler {state}: {_short(self.message)}"]
        if self.subgraph:
            more = f" and {len(self.nodes) - 3} more" if len(self.nodes) > 3 else ""
            where = f", of {', '.join(self.modules[:3])}" if self.modules else ""
            found.append(f"        the smallest part that still fails: {', '.join(self.nodes[:3])}{more}{where}")
            found.append(f"        kept as {self.subgraph}")
        return [*found, f"        {self.fix}"]


@dataclass(frozen=True)
class CompilerReport:
    """The outcome of `check --compile`; `str()` is for people.

    state     built, refused, failed, crashed or timed out
    sm        compute capability times ten
    fusion    the layers of the engine; None where there is none, or `note` says why they are not read
    roofline  an estimate of time; None as `fusion`
    """

    model: str
    what: str
    state: str
    version: str
    sm: int
    seconds: float
    refused: tuple[Refusal, ...] = ()
    failure: Failure | None = None
    warnings: tuple[str, ...] = ()
    fusion: FusionReport | None = None
    roofline: Roofline | None = None
    note: str = ""
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    plan_bytes: int = 0

    @property
    def compiler(self) -> str:
        """The product."""
        return NAME

    @property
    def passed(self) -> bool:
        """Whether NVIDIA's parser and compiler take the model."""
        return self.state == BUILT

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "passed": self.passed,
            "model": self.model,
            "compiler": self.compiler,
            "version": self.version,
            "sm": self.sm,
            "carries_over": CARRIES_OVER,
            "does_not_carry_over": DOES_NOT,
            "state": self.state,
            "seconds": round(self.seconds, 1),
            "refused": [asdict(refusal) for refusal in self.refused],
            "failure": asdict(self.failure) if self.failure else None,
            "warnings": list(self.warnings),
            "fusion": self.fusion.to_dict() if self.fusion else None,
            "roofline": self.roofline.to_dict() if self.roofline else None,
            "note": self.note,
            "weights_bytes": self.weights_bytes,
            "activation_bytes": self.activation_bytes,
            "plan_bytes": self.plan_bytes,
        }

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.what}compiled by {NAME} {self.version} for compute capability {dotted(self.sm)}"]
        lines += [str(refusal) for refusal in self.refused]
        lines += self.failure.lines(self.state) if self.failure else []
        lines += [f"warned  {_short(warning)}" for warning in self.warnings]
        lines += [str(self.fusion)] if self.fusion else []
        lines += [str(self.roofline)] if self.roofline else []
        lines += [self.note] if self.note else []
        sizes = {"weights": self.weights_bytes, "activations": self.activation_bytes}
        memory = ", ".join(f"{name} {mebibytes(size)}" for name, size in sizes.items() if size is not None)
        lines += [f"memory: {memory}"] if memory else []
        short = ".".join(self.version.split(".")[:2])
        lines += [f"This is the compiler of {NAME} {short}, and not the TensorRT of a board."]
        lines += [f"  carries over: {CARRIES_OVER}", f"  does not: {DOES_NOT}"]
        return "\n".join([*lines, "it compiles" if self.passed else self.state.upper()])


def dotted(sm: int) -> str:
    """8.6 for 86."""
    return f"{sm // 10}.{sm % 10}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"
