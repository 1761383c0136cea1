"""A check in shards: each process computes its part into a folder, and a merge makes the report of all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy import __version__
from vitdeploy.accuracy.blocks import (
    BLOCK_IMAGES,
    Blocks,
    Description,
    Part,
    assemble,
    begin,
    compute_blocks,
    difference,
    folder_of,
    incomplete,
)
from vitdeploy.accuracy.check import Check, Opened, Ran
from vitdeploy.accuracy.compute import batch_unit, chunk_size, identity_of
from vitdeploy.accuracy.runs import files_of
from vitdeploy.accuracy.shards import Shard, parse_shard
from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.data import Dataset, DataSource
from vitdeploy.errors import UsageError, shell
from vitdeploy.runtime.options import Options
from vitdeploy.tasks.choose import Asked, Targets
from vitdeploy.tasks.metric import Metric, MetricFunction
from vitdeploy.tasks.task import Row

FORM = 1

_SHARD = re.compile(r"^shard-\d+-of-(\d{1,9})$")


@dataclass(frozen=True)
class ShardReport:
    """What a process did of a check; `str()` is a line.

    Attributes:
        shard: Which shard, counted from 0.
        shards: Of how many.
        images: Samples of the shard.
        of: Samples of the check.
        computed: Those that were computed now; the others were there.
        runs: What ran, the baseline first, in words.
        folder: Where the rows are.
    """

    shard: int
    shards: int
    images: int
    of: int
    computed: int
    runs: tuple[str, ...]
    folder: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "runs": list(self.runs)}

    def __str__(self) -> str:
        there = self.images - self.computed
        return (
            f"shard {self.shard} of {self.shards}: {self.images} of {self.of} images"
            + (f", {there} of them computed before" if there else "")
            + f", in {self.folder}: {', '.join(self.runs)}"
        )


@checked_arguments
def validate_shard(
    bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
    data: DataSource,
    shard: str,
    logits: str | Path,
    *,
    runtime: str | Sequence[str] = "auto",
    baseline: Bundle | str | Path | None = None,
    checkpoint: str | Path | None = None,
    task: str | None = None,
    metric: str | MetricFunction | None = None,
    output: str | None = None,
    ignore_index: int | None = None,
    targets: Targets | None = None,
    samples: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    num_requests: int | None = None,
    compute_precision: str | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    untrusted: bool | None = None,
) -> ShardReport:
    """Compute one part of what `validate` computes, for `validate(..., merge=logits)` with the same arguments.

    A shard that was interrupted or killed goes on where it was, to within a block of some hundred images. Memory does
    not grow with the number of images, but for their names.

    Args:
        bundle: See `validate`.
        data: See `validate`; every process needs all of it, and reads its part alone.
        shard: `I/N`, counted from 0; `auto` for what torchrun or an array of Slurm says in the environment, `auto/N`
            for an indexed job of Kubernetes.
        logits: Folder of all shards, to which every process can write.
        runtime: See `validate`.
        baseline: See `validate`.
        checkpoint: See `validate`.
        task: See `validate`.
        metric: See `validate`; it is called when the shards are merged.
        output: See `validate`.
        ignore_index: See `validate`.
        targets: See `validate`.
        samples: Number of images of all shards together, see `validate`.
        seed: Seed of the choice of samples.
        threads: Threads of computation, see `vitdeploy.load`.
        num_requests: Calls that are computed at once, see `vitdeploy.load`.
        compute_precision: `fp32`, `bf16` or `fp16`, see `vitdeploy.load`.
        device: What computes, see `vitdeploy.load`.
        cache: Folder of compiled models, see `vitdeploy.load`.
        untrusted: Whether the bundles are a stranger's, see `vitdeploy.load`.

    Returns:
        What was computed.

    Raises:
        InputError: As `validate`.
        UsageError: As `validate`; there is no such shard, or `logits` cannot be written or holds another check.
        BundleError: As `validate`.
        BackendError: As `validate`.
        GateError: As `validate`.
    """
    chosen = parse_shard(shard)
    options = Options(
        threads=threads,
        num_requests=num_requests,
        compute_precision=compute_precision,
        device=device,
        cache=cache,
        untrusted=untrusted,
        checkpoint=checkpoint,
    )
    asked = Asked(task, metric, output, ignore_index, targets=targets)
    check = Check.of(bundle, data, asked, options, runtime=runtime, baseline=baseline, samples=samples, seed=seed)
    with ExitStack() as closing:
        return ShardComputer(check, Path(logits), closing).compute(chosen)


class ShardComputer:
    """The sessions of a check, loaded once, which compute any of its shards into a folder. Raises as `validate_shard`.

    closing  what closes the sessions
    """

    def __init__(self, check: Check, root: Path, closing: ExitStack) -> None:
        if isinstance(check.task, Metric):
            check.task.check_count(len(check.indices))
        self._check, self._root, self._opened = check, root, check.open(closing)

    def compute(self, shard: Shard) -> ShardReport:
        """The blocks of a shard that are not there yet."""
        check, opened = self._check, self._opened
        description = _describe(check, shard.total, opened)
        begin(self._root, shard, description)
        blocks = _blocks(check, self._root, shard, description)
        computed, there = compute_blocks(check.task, check.indices, opened.sources, blocks, self._root)
        names = tuple(one.name for one in opened.ran)
        return ShardReport(*shard, computed + there, len(check.indices), computed, names, str(blocks.folder))


def merge_shards(
    check: Check, root: Path
) -> tuple[Sequence[Ran], Sequence[Mapping[str, str]], Sequence[Row], Sequence[str]]:
    """What ran, what was left out, the rows of each run, the baseline's first, and the keys of the samples.

    Raises UsageError where shards are missing or not whole, or of another check than this one or than each other, and
    where the first image of a block is another one here than it was there.
    """
    count = shards_in(root)
    shards = [Shard(index, count) for index in range(count)]
    found = [Description.read(folder_of(root, shard)) for shard in shards]
    if absent := [shard for shard, one in zip(shards, found, strict=True) if one is None]:
        raise incomplete(root, absent)
    descriptions = [one for one in found if one is not None]
    first = descriptions[0]
    for shard, one in zip(shards, descriptions, strict=True):
        here = {**first.check, **_as_json(_common(check, count))}
        if why := difference(one.check, here):
            raise UsageError(
                f"the shard {shard} in {root} is of another check",
                why=why,
                fix="merge with the arguments of the shards, on machines of one kind, or compute it again in another "
                "folder",
            )
    try:
        ran = [_ran(check, **one) for one in first.told["ran"]]
        skipped = [{key: str(one[key]) for key in ("bundle", "runtime", "reason")} for one in first.told["skipped"]]
        parts = [_blocks(check, root, shard, first) for shard in shards]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the description in {folder_of(root, shards[0])} is damaged",
            why=f"{type(error).__name__}: {error}",
            fix=f"rm -r {shell(folder_of(root, shards[0]))} and compute this shard again",
        ) from error
    if lacking := [blocks.part.shard for blocks in parts if blocks.missing()]:
        raise incomplete(root, lacking)
    rows, keys = assemble(root, parts, len(check.indices), len(ran))
    _check_images(check, parts, keys, root)
    return ran, skipped, rows, keys


def shards_in(root: Path) -> int:
    """The number of shards in a folder; UsageError where there is none, or several checks are mixed."""
    try:
        names = [path.name for path in root.iterdir()]
    except OSError as error:
        raise UsageError(
            f"cannot read {root}", why=error.strerror, fix="give --merge the folder that the shards had as --logits"
        ) from error
    counts = sorted({int(count) for name in names for count in _SHARD.findall(name)})
    if len(counts) != 1:
        raise UsageError(
            f"there are no shards in {root}" if not counts else f"{root} has shards of several checks",
            why=f"it has shards of {' and of '.join(map(str, counts))}" if counts else None,
            fix="give --merge the folder that the shards had as --logits, one for each check",
        )
    return counts[0]


def _blocks(check: Check, root: Path, shard: Shard, description: Description) -> Blocks:
    found = description.check
    part = Part.of(shard, len(check.indices), int(found["unit"]), int(found["block"]))
    return Blocks(root, part, description.sha256, check.task.fields, len(found["sources"]))


def _common(check: Check, count: int) -> dict[str, Any]:
    """What the process that merges knows of a check without a runtime."""
    named = {key: value for key, value in check.options.items() if key not in ("cache", "untrusted")}
    return {
        "form": FORM,
        "vitdeploy": __version__,
        "shards": count,
        "data": {
            "images": len(check.indices),
            "of": len(check.task.dataset),
            "sha256": _digest(check.task.dataset, check.indices),
        },
        "task": {"name": check.task.name, **check.task.identity()},
        "bundles": [{"files": files_of(one), "labels": list(one.manifest.labels)} for one in check.bundles],
        "baseline": None if check.baseline is None else files_of(check.baseline),
        "runtimes": list(check.runtimes),
        "options": named,
    }


def _ran(check: Check, name: str, facts: Mapping[str, Any], bundle: int, reference: bool) -> Ran:
    """A run as it was described; ValueError and others for what is none."""
    if not -1 <= bundle < len(check.bundles) or (bundle == -1 and check.baseline is None):
        raise ValueError(f"there is no bundle {bundle}")
    named = {key: str(facts[key]) for key in ("backend", "version", "device", "compute_precision")}
    opened = check.baseline if bundle == -1 else check.bundles[bundle]
    named["bundle"] = str(opened.path)  # type: ignore[union-attr]  # where it is for who merges
    return Ran(str(name), {**facts, **named}, bundle, bool(reference))


def _describe(check: Check, count: int, opened: Opened) -> Description:
    sources = opened.sources
    computed = {
        "sources": [identity_of(check.task, source, sources[0]) for source in sources],
        "unit": batch_unit(sources),
        "block": chunk_size(check.task, sources, BLOCK_IMAGES),
    }
    told = {"ran": [one._asdict() for one in opened.ran], "skipped": list(opened.skipped)}
    return Description(_as_json({**_common(check, count), **computed}), _as_json(told))


def _as_json(value: Any) -> Any:
    """As it comes back from a file, so that tuples are lists."""
    return json.loads(json.dumps(value))


def _digest(dataset: Dataset, indices: Iterable[int]) -> str:
    """Of the names and classes of the samples, in their order."""
    digest = hashlib.sha256()
    for index in indices:
        digest.update(f"{dataset.names[index]}\0{dataset.label(index)}\n".encode())
    return digest.hexdigest()


def _check_images(check: Check, parts: Sequence[Blocks], keys: Sequence[str], root: Path) -> None:
    for blocks in parts:
        for places in blocks.part.blocks:
            index = check.indices[places[0]]
            if check.task.key(index, check.task.dataset.sha256(index)) != keys[places[0]]:
                raise UsageError(
                    f"{check.task.dataset.names[index]} is not what it was for the shard {blocks.part.shard}",
                    why="the image, or what is true of it, is another one under the same name",
                    fix=f"give every process the same DATA, and compute the shards again in another folder than {root}",
                )
