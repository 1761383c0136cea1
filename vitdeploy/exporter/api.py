"""`vitdeploy.export`: the public function, light to import; the pipeline behind it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.data import DataSource
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.exporter.requirements import need_all
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.options import Int8Options

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn


@checked_arguments
def export(
    source: str | Path | nn.Module,
    output: str | Path,
    *,
    precision: str = "fp32",
    target: str = "portable",
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    inputs: Sequence[str] | None = None,
    batch: int | str | None = None,
    checkpoint: str | Path | None = None,
    labels: Sequence[str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    bake_preprocessing: bool = False,
    reference: NDArray[Any] | Mapping[str, NDArray[Any]] | Sequence[str | Path] | None = None,
    calibration: DataSource | None = None,
    int8: Int8Options | None = None,
    features: bool = False,
    force: bool = False,
) -> Bundle:
    """Export `source` to the folder `output` and prove it: the bundle exists only if its numbers hold.

    Args:
        source: a name of the zoo, `timm:NAME`, `hf:FOLDER_OR_ID`, `file.py:function` that returns a module or
            `(module, example_inputs)`, `model.pt2`, `model.onnx`, a module, or a program of `torch.export`.
        output: the folder that becomes the bundle.
        precision: of the bundle: `fp32`, `fp16` or `int8` (inputs and outputs stay float32).
        target: a name of `vitdeploy targets`.
        image_size: pixels, an int or (height, width); None for the card's.
        num_classes: classes of a model of the zoo or of timm; None for the card's.
        inputs: of a network that is no classifier of RGB images, each as `NAME=SHAPE[:DTYPE]` with the batch in front,
            such as `images=1x13x64x64` or `ids=1x77:int64`.
        batch: samples a call takes, or `dynamic`; None for 1, or what `inputs` say.
        checkpoint: weights for a model of the zoo or of timm; without any a model of the zoo gets seeded random ones,
            and the manifest says so.
        labels: names of the classes in the order of the logits.
        hyperparameters: replace some of the card's, e.g. `{"windows": (8, 8, 16, 8)}` for QnA-ViT at 256 pixels; of a
            model of timm and of a function, its arguments.
        preprocessing: how images become inputs, where the model's card or checkpoint does not say it or says it
            wrongly: a whole `Preprocessing` (its size gives way to the network's) or some fields, e.g.
            `{"mode": "stretch"}`.
        bake_preprocessing: put scale, mean, deviation and channel order into the graph, whose input is then RGB
            pixels, uint8 [N, H, W, 3]; resize and crop stay with the runtime.
        reference: images to prove the bundle on: paths, RGB pixels uint8 [n, H, W, 3], or (unless the preprocessing
            is baked in) normalised float32 [n, 3, H, W]; for several inputs an array for each, by name; None for
            photographs of the package, or images of `calibration`.
        calibration: for INT8: images like those in use, see `vitdeploy.data`; for other inputs an `.npz`, or a mapping,
            with an array for each by its name; labels only for `Int8Options.max_drop`, which takes more images than
            calibration does.
        int8: how to quantize.
        features: export the feature pyramid instead of the logits: one output a stride, high resolution first.
        force: replace an existing bundle.

    Returns:
        The bundle that was written.

    Raises:
        UsageError: a name or an option does not exist or does not fit.
        ModelError: the network does not admit the image size, or cannot be built.
        CheckpointError: the checkpoint is missing, damaged, unsafe or of another network.
        ExportError: the network cannot be exported.
        BundleError: the folder cannot be written.
        GateError: the outputs differ from PyTorch's, or INT8 costs more than `Int8Options` allows.
        MissingDependencyError: a package of the extra `export` is not installed.
    """
    need_all()
    from vitdeploy.exporter.pipeline import run

    return run(
        ExportRequest(
            source,
            Path(output),
            precision=precision,
            target=target,
            image_size=image_size,
            num_classes=num_classes,
            inputs=inputs,
            batch=batch,
            checkpoint=checkpoint,
            labels=labels,
            hyperparameters=hyperparameters,
            preprocessing=preprocessing,
            bake_preprocessing=bake_preprocessing,
            reference=reference,
            calibration=calibration,
            int8=int8,
            features=features,
            force=force,
        )
    )
