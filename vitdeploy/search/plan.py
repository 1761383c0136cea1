"""What may be chosen of a deployment, and what came of a choice that was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from vitdeploy.statistics import Paired, Ratio, json_number

FIXED, GREEDY, OPTUNA = "fixed", "greedy", "optuna"  # who proposed a plan
INT8 = "int8"
QUIET = 150.0  # dB, the rounding of FP32


@dataclass(frozen=True)
class Plan:
    """A way to deploy a network: what is exported, and how a session opens it.

    precision, target  of the export
    method             how ranges are chosen, in INT8
    floats             groups of layers that stay in float, in INT8, in alphabetical order
    compute_precision  of the session; None for the types of the graph
    build              options of `vitdeploy build` besides the default, by name; None where the runtime runs no engines
    """

    precision: str = "fp32"
    target: str = "portable"
    method: str = "auto"
    floats: tuple[str, ...] = ()
    compute_precision: str | None = None
    build: tuple[tuple[str, bool | int], ...] | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether this is FP32, computed in FP32."""
        return self.precision == "fp32" and self.compute_precision is None and not self.build

    @property
    def building(self) -> str:
        """The options of `vitdeploy build` as they are typed."""
        words = (
            f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}" for name, value in self.build or ()
        )
        return " ".join(words)

    @property
    def label(self) -> str:
        """In a few words."""
        words = [self.precision, self.target]
        if self.precision == INT8 and self.method != "auto":
            words.append(self.method)
        if self.compute_precision is not None:
            words.append(f"computed in {self.compute_precision}")
        if self.build:
            words.append(f"built with {self.building}")
        return " ".join(words)

    def with_floats(self, groups: frozenset[str]) -> Plan:
        """The same with these groups in float and no others."""
        return replace(self, floats=tuple(sorted(groups)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "floats": list(self.floats), "build": None if self.build is None else dict(self.build)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """What `to_dict` gave."""
        build = document.get("build")  # journals from before there were engines have none
        found = {"floats": tuple(document["floats"]), "build": None if build is None else tuple(build.items())}
        return cls(**{**document, **found})


@dataclass(frozen=True)
class Trial:
    """A plan that was tried.

    by         who proposed it
    ratio      its time over that of FP32, both in turns on the runtime
    snr_db     of the worst output against FP32, on images that it was not calibrated on
    drop       of top-1 against FP32 on the same images; None where they have no labels
    megabytes  of the model
    """

    plan: Plan
    by: str
    ratio: Ratio
    snr_db: float
    drop: Paired | None
    megabytes: float

    @property
    def values(self) -> tuple[float, float]:
        """What a search makes small: time, and noise in dB; nothing is quieter than `QUIET`."""
        return self.ratio.value, -min(self.snr_db, QUIET)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "plan": self.plan.to_dict(),
            "by": self.by,
            "ratio": self.ratio.value,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "snr_db": json_number(self.snr_db, 2),
            "drop": None if self.drop is None else list(self.drop),
            "megabytes": round(self.megabytes, 3),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Trial:
        """What `to_dict` gave; a signal-to-noise ratio that JSON does not know is that of no noise."""
        drop, snr_db = document["drop"], document["snr_db"]
        return cls(
            Plan.from_dict(document["plan"]),
            document["by"],
            Ratio(document["ratio"], document["ratio_low"], document["ratio_high"], paired=True),
            float("inf") if snr_db is None else snr_db,
            None if drop is None else Paired(*drop),
            document["megabytes"],
        )
