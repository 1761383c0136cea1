"""Which part of DATA a process takes: one of N shards, given or found in the environment of a job."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vitdeploy.errors import UsageError

AUTO = "auto"
_FORM = (
    "--shard I/N with I from 0 to N - 1, e.g. --shard 0/8; or --shard auto in a job of torchrun, Slurm or Kubernetes"
)


class Shard(NamedTuple):
    """Shard `number` of `total`, counted from 0."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def places(self, images: int, unit: int) -> list[int]:
        """The places that it takes of `images`: of parts of `unit` each, every `total`-th.

        The parts are whole batches, so that each is computed in the company that it has in a single process.
        """
        return [place for place in range(images) if place // unit % self.total == self.number]


def parse_shard(text: str, environment: Mapping[str, str] | None = None) -> Shard:
    """The shard that `I/N`, `auto` or `auto/N` means.

    `auto` reads RANK and WORLD_SIZE (torchrun), SLURM_ARRAY_TASK_ID with _COUNT, _MIN and _STEP, or
    JOB_COMPLETION_INDEX (indexed jobs of Kubernetes), which does not tell the number and takes `auto/N`. Raises
    UsageError for another form, a shard that is not among N, and an environment that tells none or more than one.
    """
    head, slash, tail = text.partition("/")
    if head == AUTO:
        return _checked(
            *_found(_number(tail, text) if slash else None, os.environ if environment is None else environment)
        )
    if not slash:
        raise _no_shard(text)
    return _checked(_number(head, text), _number(tail, text))


def _number(text: str, whole: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _no_shard(whole)
    return int(text)


def _checked(index: int, count: int) -> Shard:
    if not 0 <= index < count:
        raise UsageError(f"there is no shard {index} of {count}", why="shards are counted from 0", fix=f"give {_FORM}")
    return Shard(index, count)


def _no_shard(text: str) -> UsageError:
    return UsageError(f"invalid shard {text!r}", fix=f"give {_FORM}")


def _found(count: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Index and number of the shard that the environment tells; `count` is the number that was given."""
    told: dict[str, tuple[int, int]] = {}
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        rank, size = _integers(environment, ("RANK", "WORLD_SIZE"))
        told["RANK and WORLD_SIZE"] = rank, size
    if "SLURM_ARRAY_TASK_ID" in environment:
        told["SLURM_ARRAY_TASK_ID"] = _slurm(environment)
    if "JOB_COMPLETION_INDEX" in environment:
        (index,) = _integers(environment, ("JOB_COMPLETION_INDEX",))
        if count is None and not told:
            raise UsageError(
                "it is not known of how many shards this is one",
                why="JOB_COMPLETION_INDEX tells which one alone",
                fix="--shard auto/N with the number of completions of the job",
            )
        told["JOB_COMPLETION_INDEX"] = index, index + 1 if count is None else count
    if len(told) != 1:
        raise UsageError(
            "the shard of this process is not known" if not told else "it is not certain which shard this process is",
            why="neither RANK and WORLD_SIZE, nor SLURM_ARRAY_TASK_ID, nor JOB_COMPLETION_INDEX is set"
            if not told
            else f"{' and '.join(told)} are set",
            fix="--shard I/N",
        )
    ((name, (index, size)),) = told.items()
    if count is not None and count != size:
        raise UsageError(f"{name} tells of {size} shards, and --shard of {count}", fix="--shard auto")
    return index, size


def _slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX", "STEP")]
    known = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1", **environment}
    task, count, first, step = _integers(known, [name for name in names if not name.endswith("MAX")])
    last = _integers(known, names[3:4])[0] if names[3] in known else first + (count - 1) * step
    step = max(step, 1)
    if last - first != (count - 1) * step or (task - first) % step:
        raise UsageError(
            "it is not certain which shard this task is",
            why=f"the array of {count} tasks from {first} to {last} has gaps",
            fix=f"sbatch --array=0-{max(count, 1) - 1}, or --shard I/N",
        )
    return (task - first) // step, count


def _integers(environment: Mapping[str, str], names: Sequence[str]) -> list[int]:
    for name in names:
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", environment.get(name, "")):
            raise UsageError(
                f"{name} is {environment.get(name)!r}", why="it should be a whole number", fix="--shard I/N"
            )
    return [int(environment[name]) for name in names]
