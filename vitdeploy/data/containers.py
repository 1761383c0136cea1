"""DATA of many images in few files: tars and Parquet, on this machine or by URL."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.data import parquet, tars
from vitdeploy.data.blobs import url_of
from vitdeploy.data.image_files import Files
from vitdeploy.data.samples import Samples
from vitdeploy.errors import InputError


def is_container(data: object) -> bool:
    """Whether DATA is named like tars or Parquet, or is a URL; nothing is read."""
    if not isinstance(data, (str, Path)):
        return False
    named = str(data).lower().endswith((tars.SUFFIX, parquet.SUFFIX, *tars.COMPRESSED))
    return url_of(data) is not None or (named and not Path(data).is_dir())


def open_container(data: str | Path) -> Samples | Files:
    """What is in such DATA. Raises InputError as `open_tars` and `open_parquet`, and for a URL of anything else."""
    text = str(data).lower()
    if text.endswith(tars.SUFFIX):
        return tars.open_tars(data)
    if text.endswith(parquet.SUFFIX):
        return parquet.open_parquet(data)
    if text.endswith(tars.COMPRESSED):
        raise InputError(
            f"{data} is compressed",
            why="an image in it cannot be read without all that stands before it",
            fix="pack a plain .tar: images are compressed already",
        )
    raise InputError(
        f"{data} cannot be read by its URL",
        why="by a URL, DATA is tars or Parquet, whose images are read where they are",
        fix="give a URL that ends in .tar or .parquet, or copy it to this machine",
    )
