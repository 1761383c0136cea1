"""Images in Parquet, as Hugging Face writes them: a column of {bytes, path} and a column of labels.

Rows are read a group at a time, of which the two last ones stay in memory. Needs pyarrow, the extra `parquet`.
"""

from __future__ import annotations

import bisect
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.data.blobs import Blob, open_blobs
from vitdeploy.data.samples import Samples
from vitdeploy.errors import InputError, MissingDependencyError

SUFFIX = ".parquet"
LARGEST_GROUP = 1 << 31  # bytes of the images in a group of rows, which are in memory at once
GROUPS = 2

# Names of columns, in the order in which they are looked for where the file does not say what its columns are.
_IMAGES, _LABELS = ("image", "img", "jpg", "png"), ("label", "labels", "class", "cls", "fine_label")


class _Columns(NamedTuple):
    """image: the path of the column of bytes; label: its column, or None; classes: names that the file tells."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


class _File:
    """One file; any number of threads may read its rows."""

    def __init__(self, blob: Blob) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingDependencyError("pyarrow", needed_for=f"reading {blob.where}", extra="parquet") from None
        self.blob = blob
        # pyarrow raises many kinds of errors on damaged files.
        try:
            self._file = parquet.ParquetFile(blob.open())
            self.columns = _columns(self._file.schema_arrow, blob)
            metadata = self._file.metadata
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except InputError:
            raise
        except Exception as error:
            raise blob.unreadable(error) from error
        self.ends = list(accumulate(counts))
        self.rows = self.ends[-1] if self.ends else 0
        self._lock, self._held = threading.Lock(), OrderedDict[int, Any]()

    def labels(self) -> list[Any]:
        """Of all rows. Raises InputError."""
        try:
            found: list[Any] = self._file.read(columns=[self.columns.label]).column(0).to_pylist()
        except Exception as error:
            raise self.blob.unreadable(error) from error
        return found

    def image(self, row: int) -> bytes:
        """The bytes of a row. Raises InputError."""
        group = bisect.bisect_right(self.ends, row)
        with self._lock:
            if group not in self._held:
                self._held[group] = self._read(group)
                while len(self._held) > GROUPS:
                    self._held.popitem(last=False)
            self._held.move_to_end(group)
            value = self._held[group][row - (self.ends[group - 1] if group else 0)].as_py()
        if not isinstance(value, bytes):
            raise InputError(
                f"row {row} of {self.blob.where} has no image in it",
                why="it may name a file elsewhere, and only bytes are read",
                fix="write the images into the file: with datasets, Dataset.to_parquet of embedded images",
            )
        return value

    def _read(self, group: int) -> Any:
        try:
            metadata = self._file.metadata.row_group(group)
            paths = [metadata.column(place) for place in range(metadata.num_columns)]
            size = sum(one.total_uncompressed_size for one in paths if one.path_in_schema == self.columns.image)
        except Exception as error:
            raise self.blob.unreadable(error) from error
        if size > LARGEST_GROUP:
            raise InputError(
                f"the rows of {self.blob.where} are in too large groups",
                why=f"a group has {size:,} bytes of images, and all of them would be in memory",
                fix="write it with row_group_size=100",
            )
        try:
            column = self._file.read_row_group(group, columns=[self.columns.image]).column(0).combine_chunks()
            return column.field("bytes") if "." in self.columns.image else column
        except Exception as error:
            raise self.blob.unreadable(error) from error


def open_parquet(data: str | Path) -> Samples:
    """The images of one file, or of several by a pattern.

    Raises InputError for a file that is damaged, has no column of images or several, or other columns than the first,
    and MissingDependencyError without pyarrow.
    """
    files = [_File(blob) for blob in open_blobs(data)]
    columns, where = files[0].columns, str(data)
    for file in files[1:]:
        if file.columns != columns:
            raise InputError(
                f"{file.blob.where} has other columns than {files[0].blob.where}",
                why=f"{file.columns} against {columns}",
                fix="give the files of one data set alone",
            )
    ends = list(accumulate(file.rows for file in files))
    if not ends[-1]:
        raise InputError(f"there are no images in {where}", why="it has no rows", fix="give at least one image")

    def read(index: int) -> bytes:
        place = bisect.bisect_right(ends, index)
        return files[place].image(index - (ends[place - 1] if place else 0))

    names = [f"{file.blob.name}[{row}]" for file in files for row in range(file.rows)]
    samples = Samples(where, names, read)
    if columns.label is None:
        return samples
    labels = [label for file in files for label in file.labels()]
    if all(label is None or label == -1 for label in labels):  # how a part without labels is written
        return samples
    if all(isinstance(label, str) for label in labels):
        return samples._replace(kinds=labels, classes=columns.classes or tuple(sorted(set(labels))))
    wrong = next((row for row, label in enumerate(labels) if not _is_number(label, columns.classes)), None)
    if wrong is not None:
        most = "" if columns.classes is None else f" below {len(columns.classes)}"
        raise InputError(
            f"{names[wrong]} has the label {labels[wrong]!r}",
            why=f"others are numbers of classes, whole and not negative{most}",
            fix="give every row the number of a class, or its name, or leave the column out",
        )
    if columns.classes is None:
        return samples._replace(numbers=labels)
    return samples._replace(kinds=[columns.classes[label] for label in labels], classes=columns.classes)


def _is_number(label: Any, classes: Sequence[str] | None) -> bool:
    whole = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    return whole and (classes is None or label < len(classes))


def _columns(schema: Any, blob: Blob) -> _Columns:
    """The columns that the file says are images and classes, or those that look like them."""
    import pyarrow as arrow

    told = _features(schema.metadata or {})
    images = []
    for field in schema:
        kind = field.type
        holds = arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)
        inner = arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if inner or (holds and field.name in _IMAGES):
            images.append(f"{field.name}.bytes" if inner else field.name)
    named = [one for one in images if told.get(one.partition(".")[0], {}).get("_type") == "Image"] or images
    if len(named) != 1:
        shown = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise InputError(
            f"{blob.where} has {'no column' if not named else 'several columns'} of images",
            why=f"its columns are {shown}",
            fix="give it one column of {bytes, path}, as Hugging Face writes it, or of bytes that is called image",
        )
    classes = {
        name: told[name].get("names") for name in schema.names if told.get(name, {}).get("_type") == "ClassLabel"
    }
    label = next(iter(classes), None) or next((name for name in _LABELS if name in schema.names), None)
    names = classes.get(label) if label is not None else None
    known = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return _Columns(named[0], label, tuple(names) if known and names is not None else None)


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """What the file says of its columns in the words of Hugging Face's `datasets`; empty where it does not."""
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {str(name): dict(one) for name, one in found.items() if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
