"""Images as tars and Parquet files, as WebDataset and Hugging Face write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(image: np.ndarray) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], **options: Any) -> Path:
    """A tar of these members, in this order."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(images: np.ndarray, labels: Sequence[Any], *, kind: str = "cls", first: int = 0) -> list[tuple[str, bytes]]:
    """`000007.png` and `000007.cls`, or `.json`, of each image."""
    found = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), first):
        told = str(label).encode() if kind == "cls" else json.dumps({"label": label, "caption": "x"}).encode()
        found += [(f"{number:06}.png", png(image)), (f"{number:06}.{kind}", told)]
    return found


def write_parquet(path: Path, images: np.ndarray, labels: Sequence[Any] | None, **options: Any) -> Path:
    """Rows of {bytes, path}; `names` are those of the classes, as `datasets` stores them."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    names = options.pop("names", None)
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    cells = [{"bytes": png(image), "path": f"{number}.png"} for number, image in enumerate(images)]
    columns = {"image": arrow.array(cells, kind)}
    if labels is not None:
        columns["label"] = arrow.array(labels)
    table = arrow.table(columns)
    if names is not None:
        told = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})
    parquet.write_table(table, path, **options)
    return path
