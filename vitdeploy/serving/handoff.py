"""Hand a bundle to a program that serves it: the files that it reads, and a page about what it does otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.serving.content import Destination, File, Request
from vitdeploy.serving.destinations import find_destination, full_name
from vitdeploy.serving.folder import MARK, check_folder, write_folder
from vitdeploy.serving.readme import README, readme
from vitdeploy.signing.check import open_bundle

LARGEST_BATCH = 4096

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")


@dataclass(frozen=True)
class HandoffReport:
    """What `handoff` wrote; `str()` is a few lines.

    Attributes:
        path: The folder.
        to: Name of the destination.
        name: What the network is called there.
        files: Of each file its `path` in the folder and its length in `bytes`.
        baked: What was built into the model, a sentence each.
        differs: What the destination does otherwise than the bundle, a sentence each.
    """

    path: Path
    to: str
    name: str
    files: Sequence[Mapping[str, Any]]
    baked: Sequence[str]
    differs: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "path": str(self.path),
            "to": self.to,
            "name": self.name,
            "files": [dict(one) for one in self.files],
            "baked": list(self.baked),
            "differs": list(self.differs),
        }

    def __str__(self) -> str:
        size = sum(one["bytes"] for one in self.files) / 1e6
        lines = [f"wrote {self.path} for {self.to}: {len(self.files)} files, {size:.1f} MB"]
        lines += [f"built in: {one}" for one in self.baked]
        lines += [f"differs: {one}" for one in self.differs]
        return "\n".join([*lines, f"read {self.path / README}"])


@checked_arguments
def handoff(
    bundle: Bundle | str | Path,
    output: str | Path,
    *,
    to: str,
    name: str | None = None,
    engine: str | Path | None = None,
    max_batch: int | None = None,
    key: str | Path | None = None,
    force: bool = False,
) -> HandoffReport:
    """Write what a program needs to serve a bundle, with a README about what it does otherwise than the bundle.

    The same bundle and options give the same bytes. What of the preprocessing the destination cannot be told is built
    into the model where it can be, and the model is then compared with the bundle's.

    Args:
        bundle: The bundle, or its folder.
        output: The new folder.
        to: `triton`, `openvino-model-server`, `deepstream`, `dlstreamer`, `trtexec` or `cpp`.
        name: What the network is called there; by default the name of the model in the bundle.
        engine: File of a serialized TensorRT engine that `vitdeploy build` or trtexec made, for `triton`.
        max_batch: Images of one call where the batch of the bundle is free.
        key: PEM file of a public key that the bundle has to be signed with, see `vitdeploy.verify`.
        force: Whether to replace a folder that an earlier call wrote.

    Returns:
        The report: the files, what was built in and what differs.

    Raises:
        UsageError: There is no such destination, it does not take this network or an option, or the folder cannot be
            written.
        BundleError: The bundle is damaged or altered.
        MissingDependencyError: onnx, or for `deepstream` and `dlstreamer` ONNX Runtime, is not installed.
        GateError: With `key`: the bundle is not signed by it.
    """
    destination, to = find_destination(to), full_name(to)
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f"invalid name {name!r}",
            why="it becomes the name of a folder",
            fix="give letters, digits, dots, hyphens and underscores, e.g. --name lemevit",
        )
    path = Path(output)
    check_folder(path, force=force)
    _check_options(destination, to, engine=engine, max_batch=max_batch)
    opened = open_bundle(bundle, key)
    opened.check_graph()
    request = Request(opened, name or _name_of(opened), None if engine is None else _engine(Path(engine)), max_batch)
    if max_batch is not None and not request.batch_is_free:
        raise UsageError(
            "the batch of this bundle is fixed",
            why=f"its inputs are {', '.join(map(str, opened.manifest.inputs))}",
            fix="leave --max-batch out, or export with --batch dynamic",
        )
    opened.check_files()
    content = destination.write(request)
    files = dict(content.files)
    files[README] = File(readme(request, content, destination.title).encode("utf-8", "replace"), "this page")
    files[MARK] = File(_mark(request, to, files), "the bundle that this was made of")
    write_folder(path, files, force=force)
    listed = [{"path": one, "bytes": len(file.data)} for one, file in sorted(files.items())]
    return HandoffReport(path, to, request.name, listed, tuple(content.baked), tuple(content.differs))


def _check_options(destination: Destination, to: str, **options: object) -> None:
    """UsageError for an option that the destination has no use for, or whose value makes no sense."""
    for field, value in options.items():
        if value is not None and field not in destination.takes:
            option = f"--{field.replace('_', '-')}"
            raise UsageError(f"{to} takes no {option}", fix=f"leave {option} out")
    batch = options["max_batch"]
    if isinstance(batch, int) and not 1 <= batch <= LARGEST_BATCH:
        raise UsageError(f"invalid batch {batch}", fix=f"--max-batch 8, from 1 to {LARGEST_BATCH}")


def _engine(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read the engine {path}", why=why, fix="--engine FILE.plan, a file") from error
    if not data:
        raise UsageError(f"the engine {path} is empty", fix="build it again, and give the file with --engine")
    return data


def _name_of(bundle: Bundle) -> str:
    """The name of the model, as far as a folder can have it."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", bundle.manifest.model.name)[:100].strip("._-")
    return found if _NAME.fullmatch(found) else "model"


def _mark(request: Request, to: str, files: Mapping[str, File]) -> bytes:
    document = {
        "to": to,
        "name": request.name,
        "model": request.manifest.model.name,
        "precision": request.manifest.precision,
        "manifest_sha256": request.bundle.manifest_sha256,
        "files": sorted(files),
    }
    return (json.dumps(document, indent=2) + "\n").encode()
