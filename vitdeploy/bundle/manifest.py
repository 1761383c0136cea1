"""The contents of `manifest.json` as typed records, whose values are checked when they are made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from vitdeploy.errors import BundleError, InputError, VitDeployError
from vitdeploy.preprocess import Preprocessing

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # the name that OpenSSF model signing gives it
ONNX = "onnx"
PYTORCH = "PyTorch"
WEIGHT_KINDS = ("random", "checkpoint", "module", ONNX)
# Bytes of one input or output in one call, and of all that a reference holds: it is in memory at once, on a device of
# 4 GB too. 1,700 images of 224x224 pixels in float32.
LARGEST_REFERENCE = 1 << 30
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool")

# The hash of everything else in the manifest, so that a flipped byte in it is noticed like one in any other file.
SELF_HASH = "manifest_sha256"

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Relative, forward slashes, no hidden or parent folders, nothing that means something to a shell or another system.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")

JsonObject = dict[str, Any]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True)
class WeightsRecord:
    """The origin of the weights: `random` (a seeded start), `checkpoint`, `module` (a user's live module) or `onnx`.

    Of the last `detail` is the name of the file.
    """

    kind: str
    detail: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        _require(self.kind in WEIGHT_KINDS, f"kind is {self.kind!r}, not one of {', '.join(WEIGHT_KINDS)}")
        _require(self.sha256 is None or bool(_SHA256.fullmatch(self.sha256)), "sha256 is not 64 hexadecimal digits")


@dataclass(frozen=True)
class ModelRecord:
    """The network; `image_size` is (height, width) in pixels, None for one that takes no images.

    hyperparameters  keyword arguments of a network of the zoo; empty in a bundle of a user's own module, and in one
                     that was written before they were recorded
    """

    name: str
    family: str
    image_size: tuple[int, int] | None
    num_classes: int
    weights: WeightsRecord
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image_size is not None:
            _require(min(self.image_size) >= 1, f"image_size {self.image_size} has a side below 1")
        _require(self.num_classes >= 0, f"num_classes is negative: {self.num_classes}")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; a dynamic axis carries its name, usually `batch`, instead of a length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        _require(bool(self.name), "a tensor has no name")
        _require(self.dtype in DTYPES, f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        _require(
            all(isinstance(axis, str) or axis >= 1 for axis in self.shape),
            f"shape {list(self.shape)} has a length below 1",
        )
        size = math.prod(axis for axis in self.shape if isinstance(axis, int)) * (8 if "64" in self.dtype else 4)
        _require(
            size <= LARGEST_REFERENCE,
            f"shape {list(self.shape)} takes {size:,} bytes: more than {LARGEST_REFERENCE:,}",
        )

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` fits; a dynamic axis takes any length but zero."""
        return len(shape) == len(self.shape) and all(
            length > 0 if isinstance(axis, str) else length == axis
            for axis, length in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class FileRecord:
    """Hash and length of one file of the bundle."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _require(bool(_SHA256.fullmatch(self.sha256)), "sha256 is not 64 hexadecimal digits")
        _require(self.bytes >= 0, f"bytes is negative: {self.bytes}")


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a bundle says about itself.

    Attributes:
        model: The network: its name, and where its weights are from.
        precision: `fp32`, `fp16` or `int8`, from the types in the graph.
        target: The form of the graph, a name of `vitdeploy targets`.
        opset: ONNX opset of the graph.
        preprocessing: How images become inputs; None for a network that takes none.
        inputs: Names, types and shapes of the inputs; a free batch is a word.
        outputs: The same of the outputs.
        platform: The board, or the version of TensorRT, that was named for it; None where the target itself was.
        image_inputs: The inputs that preprocessing makes out of images; None in a bundle from before there were others
            than one of images.
        preprocessing_in_graph: The graph scales and normalises: its input is uint8 [N, H, W, 3], the RGB pixels that
            the recorded resize and crop leave.
        labels: Names of the classes, in the order of the logits.
        tools: Name and version of every package that took part in the export.
        reference: What `reference.npz` holds: under `images` the kind of each image, under `rounding_db` by output what
            it costs to round every FP16 tensor where it is made.
        parity: One JSON object for each comparison with the reference.
        accuracy: One JSON object for each run of `validate`.
        graph: Node counts before and after, and what each pass changed.
        precision_report: What stayed in FP32 and why.
        created: When it was made: UTC, ISO 8601.
        files: Hash and length of every file, by its path inside the bundle; the writer fills it.
        schema_version: The version of this format.
    """

    model: ModelRecord
    precision: str
    target: str
    opset: int
    preprocessing: Preprocessing | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str | None = None
    image_inputs: tuple[str, ...] | None = None
    preprocessing_in_graph: bool = False
    labels: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    reference: JsonObject = field(default_factory=dict)
    parity: list[JsonObject] = field(default_factory=list)
    accuracy: list[JsonObject] = field(default_factory=list)
    graph: JsonObject = field(default_factory=dict)
    precision_report: JsonObject = field(default_factory=dict)
    created: str = field(default_factory=_now)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            _require(bool(specs), f"{side} is empty")
            _require(len({spec.name for spec in specs}) == len(specs), f"{side} has two tensors of one name")
        _require(all(spec.shape for spec in self.inputs), "an input has no batch axis")
        takes_pixels = self.inputs[0].dtype == "uint8" and self.inputs[0].shape[-1] == 3
        _require(
            takes_pixels or not self.preprocessing_in_graph,
            f"preprocessing_in_graph needs a uint8 input [N, H, W, 3], and the input is {self.inputs[0]}",
        )
        _require(
            not self.preprocessing_in_graph or (self.preprocessing is not None and self.preprocessing.takes_colours),
            "preprocessing_in_graph needs a preprocessing of RGB or BGR",
        )
        names = {spec.name for spec in self.inputs}
        _require(set(self.images) <= names, f"image_inputs {list(self.images)} are not among the inputs")
        _require(bool(self.images) == (self.preprocessing is not None), "image_inputs and preprocessing do not fit")
        if self.preprocessing is not None:
            pixels = math.prod(self.preprocessing.size) * self.preprocessing.depth
            _require(4 * pixels <= LARGEST_REFERENCE, f"preprocessing.size {list(self.preprocessing.size)} is absurd")
        classes = self.model.num_classes
        _require(len(self.labels) in (0, classes), f"{len(self.labels)} labels for {classes} classes")
        for name in self.files:
            allowed = len(name) <= 200 and _FILE_NAME.fullmatch(name) and name not in (MANIFEST, SIGNATURE)
            _require(bool(allowed), f"{name!r} cannot be a file of a bundle")

    @property
    def images(self) -> tuple[str, ...]:
        """The inputs that are images; none where there is no preprocessing."""
        if self.image_inputs is None:
            return () if self.preprocessing is None else (self.inputs[0].name,)
        return self.image_inputs

    @property
    def against(self) -> str:
        """What the reference outputs come from: PyTorch, or the `.onnx` file that the bundle was made of."""
        weights = self.model.weights
        return weights.detail if weights.kind == ONNX else PYTORCH

    @property
    def recipe(self) -> Preprocessing:
        """The preprocessing of the images.

        Raises:
            InputError: The network takes no images.
        """
        if self.preprocessing is None:
            raise InputError(
                f"{self.model.name} takes no images",
                why=f"its inputs are {', '.join(map(str, self.inputs))}",
                fix="session.run with an array for each input, by its name",
            )
        return self.preprocessing

    def to_dict(self) -> JsonObject:
        """The manifest as plain JSON values."""
        document: JsonObject = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        return document

    @classmethod
    def from_dict(cls, document: Any, *, where: str) -> Manifest:
        """The inverse of `to_dict`; keys it does not know are ignored.

        Args:
            document: What the file holds, as JSON values.
            where: What names the bundle in an error.

        Returns:
            The manifest.

        Raises:
            BundleError: The document is no manifest, or one of a newer schema.
        """
        try:
            manifest: Manifest = _decode(cls, document, "manifest")
        except ValueError as error:
            raise damaged(where, str(error)) from None
        return manifest


def damaged(where: str, why: str) -> BundleError:
    """The error for a manifest that is not as vitdeploy wrote it."""
    return BundleError(f"the manifest of {where} is damaged", why=why, fix="copy the bundle again, or export it again")


def dump(document: JsonObject) -> bytes:
    """The bytes of `manifest.json`, with its own hash brought up to date."""
    signed = {**document, SELF_HASH: _self_hash(document)}
    return (json.dumps(signed, indent=2, allow_nan=False) + "\n").encode()


def parse(text: bytes, *, where: str) -> JsonObject:
    """The JSON object in `text`; BundleError for a newer schema and for a manifest that was changed."""
    try:
        document = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        found_hash = _self_hash(document) if isinstance(document, dict) else None
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"{MANIFEST} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise damaged(where, f"{MANIFEST} is not a JSON object")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise damaged(where, "it has no schema_version")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{where} was written by a newer vitdeploy",
            why=f"its schema is {version}, and this installation reads up to {SCHEMA_VERSION}",
            fix="pip install --upgrade vitdeploy",
        )
    if document.get(SELF_HASH) != found_hash:
        raise damaged(where, "it was changed after it was written")
    return document


def _self_hash(document: JsonObject) -> str:
    rest = {key: value for key, value in document.items() if key != SELF_HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits)


@cache
def _fields(cls: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = get_type_hints(cls)
    return tuple((item, hints[item.name]) for item in dataclasses.fields(cls))


def _decode(kind: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as the annotated type `kind`; ValueError says which key is wrong and what it should be."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin in (tuple, list):
        _require(isinstance(value, list), f"{where} should be a list")
        one_kind = origin is list or arguments[-1] is ...
        kinds = [arguments[0]] * len(value) if one_kind else list(arguments)
        _require(len(value) == len(kinds), f"{where} should have {len(kinds)} entries")
        return origin(_decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is not None:
        _require(isinstance(value, dict), f"{where} should be an object")
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        _require(abs(value) < 2**53, f"{where} is too large")
        return float(value)
    _require(type(value) is kind, f"{where} should be of type {getattr(kind, '__name__', kind)}")
    return value


def _decode_record(kind: type, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), f"{where} should be an object")
    found = {}
    for item, hint in _fields(kind):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if item.name in value:
            found[item.name] = _decode(hint, value[item.name], f"{where}.{item.name}")
        else:
            _require(not required, f"{where}.{item.name} is missing")
    try:
        return kind(**found)
    except VitDeployError as error:
        raise ValueError(f"{where}: {error.what}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        if type(value) is kind:
            return value
        if isinstance(value, dict) and dataclasses.is_dataclass(kind):
            return _decode(kind, value, where)
        if isinstance(value, list) and get_origin(kind) is tuple:
            return _decode(kind, value, where)
    names = [getattr(get_origin(kind) or kind, "__name__", str(kind)) for kind in kinds]
    raise ValueError(f"{where} should be of type {' or '.join(names)}")
