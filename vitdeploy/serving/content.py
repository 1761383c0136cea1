"""What a destination is asked for, and what it answers: the anatomy that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from vitdeploy.bundle import MODEL, Bundle, Manifest, Reference, TensorSpec
from vitdeploy.errors import UsageError
from vitdeploy.preprocess.recipe import BANDS, Preprocessing
from vitdeploy.runtime.backends.openvino import IR_MODEL, IR_WEIGHTS


class File(NamedTuple):
    """A file to write: its bytes, what it is in a few words, and whether it is a program to run."""

    data: bytes
    about: str
    runs: bool = False


@dataclass(frozen=True)
class Content:
    """What a destination gets.

    files    by path, relative to the folder
    start    the commands that serve it, as they are typed in the folder
    baked    what was built into the model because the destination cannot be told it, a sentence each
    differs  what the destination does otherwise than the bundle, a sentence each; empty where nothing does
    told     what one has to know besides, a paragraph each
    client   whether the images are prepared by whoever asks, and not by the destination
    """

    files: Mapping[str, File]
    start: Sequence[str]
    baked: Sequence[str] = ()
    differs: Sequence[str] = ()
    told: Sequence[str] = ()
    client: bool = True


@dataclass(frozen=True)
class Request:
    """A bundle on its way to a destination.

    name       what it is called there, which may be the name of a folder
    engine     a serialized engine of TensorRT; None where none was given
    max_batch  images of one call where the batch is free; None for the destination's default
    """

    bundle: Bundle
    name: str
    engine: bytes | None = None
    max_batch: int | None = None

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @cached_property
    def model(self) -> bytes:
        """The ONNX file, checked against the manifest."""
        return self.bundle.read(MODEL)

    @cached_property
    def native(self) -> Mapping[str, File]:
        """The model in the format of OpenVINO, which bundles for it carry beside the ONNX file; else empty."""
        if not {IR_MODEL, IR_WEIGHTS} <= self.manifest.files.keys():
            return {}
        return {
            IR_MODEL: File(self.bundle.read(IR_MODEL), "the bundle's model in the format of OpenVINO"),
            IR_WEIGHTS: File(self.bundle.read(IR_WEIGHTS), "its weights"),
        }

    @cached_property
    def reference(self) -> Reference:
        """Inputs, and what PyTorch made of them."""
        return self.bundle.reference()

    @property
    def batch_is_free(self) -> bool:
        """Whether the first axis of all inputs and outputs is one and the same word, and all other lengths are fixed.

        Only then a server may put requests together, and take the answers apart.
        """
        shapes = [spec.shape for spec in (*self.manifest.inputs, *self.manifest.outputs)]
        return (
            all(shape and isinstance(shape[0], str) for shape in shapes)
            and len({shape[0] for shape in shapes}) == 1
            and all(isinstance(axis, int) for shape in shapes for axis in shape[1:])
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, each on one line; numbers where the bundle has none."""
        manifest = self.manifest
        return tuple(map(one_line, manifest.labels)) or tuple(map(str, range(manifest.model.num_classes)))

    def classifier(self, title: str) -> tuple[TensorSpec, TensorSpec, Preprocessing]:
        """Image, logits and preprocessing; UsageError where this is no classifier of 8-bit images."""
        manifest, recipe = self.manifest, self.manifest.preprocessing
        inputs, outputs = manifest.inputs, manifest.outputs
        fix = "--to triton, which takes every bundle"
        if recipe is None or len(inputs) != 1 or len(inputs[0].shape) != 4:
            why = f"its inputs are {', '.join(map(str, inputs))}"
            raise UsageError(
                f"{title} takes networks of one image, and {manifest.model.name} is none", why=why, fix=fix
            )
        if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].shape[1] != len(self.labels):
            why = f"its outputs are {', '.join(map(str, outputs))}, and it has {len(self.labels)} classes"
            raise UsageError(f"{title} takes classifiers, and {manifest.model.name} is none", why=why, fix=fix)
        if recipe.channels == BANDS:
            why = f"the network takes {recipe.depth} bands of a raster file, and a video has colours"
            raise UsageError(f"{title} takes 8-bit images", why=why, fix=fix)
        return inputs[0], outputs[0], recipe


@dataclass(frozen=True)
class Destination:
    """A program that serves networks.

    title  its name in a sentence
    write  what it gets
    takes  the options that it knows, by the fields of `Request`
    """

    title: str
    write: Callable[[Request], Content]
    takes: frozenset[str] = field(default=frozenset())


def one_line(text: str) -> str:
    """A text without what would end a line of a file."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def octal(letter: str) -> str:
    """A letter as the octal digits of its bytes, which C and protobuf's text format read alike."""
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "replace"))


def label_lines(request: Request) -> File:
    """A file with a label on each line, in the order of the outputs."""
    return File("".join(f"{label}\n" for label in request.labels).encode("utf-8", "replace"), "the labels, one a line")
