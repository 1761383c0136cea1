"""The rows of shards in a folder: blocks of some hundred samples, each a file, under a description of the check.

    DIR/shard-2-of-8/check.json       what the rows belong to, and what ran
    DIR/shard-2-of-8/block-00003.npz  keys and rows of its fourth block

A file is written atomically and names the check by its hash, so that whatever a killed or repeated process left is a
whole block of this check or does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.accuracy.compute import Source, Work, compute_chunks, stacked
from vitdeploy.accuracy.rows import canonical
from vitdeploy.accuracy.shards import Shard
from vitdeploy.errors import UsageError, shell
from vitdeploy.files import write_atomically
from vitdeploy.machine.settings import usable_cores
from vitdeploy.progress import Progress
from vitdeploy.tasks.task import Field, Row, Task

Array = NDArray[Any]

BLOCK_IMAGES = 256
CHECK = "check.json"


class Description(NamedTuple):
    """What the rows of a shard belong to, as JSON values.

    check  what is the same for all shards
    told   what is told of a run besides, of which the first shard's counts
    """

    check: Mapping[str, Any]
    told: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Of `check`."""
        return hashlib.sha256(canonical(self.check).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """That of a shard; None where it is not there or not whole."""
        try:
            document = json.loads((folder / CHECK).read_bytes())
            return cls(dict(document["check"]), dict(document["told"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


def folder_of(root: Path, shard: Shard) -> Path:
    """Where a shard is kept."""
    return root / f"shard-{shard.number}-of-{shard.total}"


class Part(NamedTuple):
    """The samples of a shard by their places among all, in blocks."""

    shard: Shard
    blocks: Sequence[Sequence[int]]

    @classmethod
    def of(cls, shard: Shard, images: int, unit: int, block: int) -> Part:
        """The part that a shard takes of `images`, in blocks of `block`."""
        places = shard.places(images, unit)
        return cls(shard, [places[start : start + block] for start in range(0, len(places), block)])


class Blocks:
    """The blocks of one shard of a check."""

    def __init__(self, root: Path, part: Part, sha256: str, fields: Mapping[str, Field], sources: int) -> None:
        self.folder, self.part = folder_of(root, part.shard), part
        self._sha256, self._fields, self._sources = sha256, fields, sources

    def read(self, number: int) -> tuple[list[str], list[dict[str, Array]]] | None:
        """Keys of the samples and the rows of each source, the baseline first; None where they are not there."""
        count = len(self.part.blocks[number])
        # numpy and zipfile raise many kinds of errors on damaged files.
        with contextlib.suppress(Exception), np.load(self._path(number), allow_pickle=False) as file:
            keys = file["keys"]
            rows = [{name: file[f"{place} {name}"] for name in self._fields} for place in range(self._sources)]
            whole = all(field.admits(one[name], count) for one in rows for name, field in self._fields.items())
            if whole and str(file["check"]) == self._sha256 and keys.shape == (count,) and keys.dtype.kind == "U":
                return keys.tolist(), rows
        return None

    def write(self, number: int, keys: Sequence[str], rows: Sequence[Mapping[str, Array]]) -> None:
        """Stores a block. Raises OSError."""
        named = {f"{place} {name}": array for place, one in enumerate(rows) for name, array in one.items()}
        content = io.BytesIO()
        np.savez(content, check=np.array(self._sha256), keys=np.array(list(keys)), **named)  # type: ignore[arg-type]
        write_atomically(self._path(number), content.getvalue())

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not there."""
        return [number for number in range(len(self.part.blocks)) if self.read(number) is None]

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:05}.npz"


def begin(root: Path, shard: Shard, description: Description) -> None:
    """Makes the folder of a shard with its description; UsageError where it has another one or cannot be written."""
    folder = folder_of(root, shard)
    found = Description.read(folder)
    if found is not None and found.check != description.check:
        raise UsageError(
            f"{folder} belongs to another check",
            why=difference(found.check, description.check),
            fix=f"give --logits another folder, or rm -r {shell(folder)}",
        )
    if found is None:
        with cannot_write(root):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / CHECK, json.dumps(description._asdict(), indent=1) + "\n")


def compute_blocks(
    task: Task, indices: Sequence[int], sources: Sequence[Source], blocks: Blocks, root: Path
) -> tuple[int, int]:
    """Computes the blocks that are not there; gives how many samples were computed, and how many were there.

    Memory holds the rows of one block, and besides what `compute_chunks` says: it does not grow with the samples.
    """
    missing = blocks.missing()
    rows: list[list[Row]] = [[] for _ in sources]

    def take(place: int, key: str, make: Callable[[], Row]) -> None:
        rows[place].append(make())

    every = sum(map(len, blocks.part.blocks))
    computed = sum(len(blocks.part.blocks[number]) for number in missing)
    chunks = ([str(indices[place]) for place in blocks.part.blocks[number]] for number in missing)
    work = Work(chunks, int, lambda place, key: True, take)
    with (
        ThreadPoolExecutor(usable_cores(), thread_name_prefix="vitdeploy-decode") as pool,
        Progress("validating", len(sources) * computed) as progress,
    ):
        try:
            for number, chunk in zip(missing, compute_chunks(task, work, sources, pool, progress), strict=True):
                keys = list(pool.map(lambda key: task.key(int(key), task.dataset.sha256(int(key))), chunk))
                with cannot_write(root):
                    blocks.write(number, keys, [stacked(one) for one in rows])
                for one in rows:
                    one.clear()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return computed, every - computed


def assemble(
    root: Path, parts: Sequence[Blocks], images: int, sources: int
) -> tuple[list[dict[str, Array]], list[str]]:
    """The rows of all shards in the order of a single process, and the keys; all blocks have to be there.

    The rows are in a file without a name in `root`, which ends with the process; memory holds one block, and a key of
    64 characters for each sample.
    """
    rows: list[dict[str, Array]] = [{} for _ in range(sources)]
    keys = [""] * images
    with Progress("merging", images) as progress, cannot_write(root):
        for blocks in parts:
            for number, places in enumerate(blocks.part.blocks):
                found = blocks.read(number)
                if found is None:
                    raise incomplete(root, [blocks.part.shard])
                for place, key in zip(places, found[0], strict=True):
                    keys[place] = key
                for whole, part in zip(rows, found[1], strict=True):
                    for name, array in part.items():
                        if name not in whole:
                            whole[name] = _on_disk(root, array.dtype, (images, *array.shape[1:]))
                        whole[name][places] = array
                progress.advance(len(places))
    return rows, keys


def incomplete(root: Path, shards: Sequence[Shard]) -> UsageError:
    """The error for shards that are not there, or not whole."""
    shown = ", ".join(map(str, shards[:10])) + (f" and {len(shards) - 10} more" if len(shards) > 10 else "")
    return UsageError(
        f"{root} lacks rows of {'the shard' if len(shards) == 1 else 'the shards'} {shown}",
        why="a process has not begun, not ended, or left a damaged file",
        fix=f"the same command with --shard {shards[0]} --logits {shell(root)}, which computes what is missing",
    )


def difference(one: Any, other: Any, name: str = "") -> str:
    """The first place where two JSON values differ, in words; empty where they are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            if one.get(key) != other.get(key):
                return difference(one.get(key), other.get(key), f"{name} {key}".strip())
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            if pair[0] != pair[1]:
                return difference(*pair, f"{name} {place}".strip())
    return "" if one == other else f"{name} was {_short(one)} and is {_short(other)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _on_disk(root: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    with tempfile.TemporaryFile(dir=root) as file:  # what is mapped stays until nobody refers to it
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape))


@contextlib.contextmanager
def cannot_write(root: Path) -> Iterator[None]:
    """An OSError inside becomes a UsageError about the folder of the shards."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot keep the rows of shards in {root}",
            why=error.strerror or str(error),
            fix="give a folder that every process can write to, with room on its disk",
        ) from error
