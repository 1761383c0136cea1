"""One INT8 file made by another tool from the same FP32 graph and images.

    python int8_peers.py METHOD MODEL.onnx IMAGES.npy OUTPUT

IMAGES is float32 [batches, batch, 3, height, width]. Needs no vitdeploy: it runs in environments of its own. That of
most tools has the same onnx, onnxruntime and openvino as the other side; AIMET and Quark pin versions of their own:

    python -m venv peers
    peers/bin/pip install nncf==3.4.0 onnxsim==0.8.1 onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1 sympy
    python -m venv aimet
    aimet/bin/pip install aimet-onnx==2.42.0 torch==2.13.0 onnxruntime==1.31.1
    python -m venv quark
    quark/bin/pip install amd-quark==0.13 torch==2.13.0 onnxruntime==1.31.1
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx


def onnxruntime_static(model: Path, images: Any, output: Path, **options: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        batches = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    quantize_static(preprocessed(model, output), output, Reader(), **options)


def onnxruntime_static_u8(model: Path, images: Any, output: Path) -> None:
    from onnxruntime.quantization import QuantType

    onnxruntime_static(model, images, output, activation_type=QuantType.QUInt8)


def onnxruntime_dynamic(model: Path, images: Any, output: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    graph = onnx.load(preprocessed(model, output))
    del graph.graph.value_info[:]  # it does not adapt the shapes of the weights that it transposes, and stops over them
    quantize_dynamic(graph, output)


def preprocessed(model: Path, output: Path) -> Path:
    """The file after the step that ONNX Runtime's documentation asks for before quantization."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = output.with_suffix(".preprocessed")
    quant_pre_process(model, path)
    return path


def nncf_onnx(model: Path, images: Any, output: Path, **options: Any) -> None:
    import nncf

    data = nncf.Dataset(images, lambda batch: {"images": batch})
    onnx.save(nncf.quantize(onnx.load(model), data, subset_size=len(images), **options), output)


def nncf_onnx_transformer(model: Path, images: Any, output: Path) -> None:
    import nncf

    nncf_onnx(model, images, output, model_type=nncf.ModelType.TRANSFORMER)


def nncf_openvino(model: Path, images: Any, output: Path, **options: Any) -> None:
    import nncf
    import openvino

    graph = nncf.quantize(openvino.convert_model(model), nncf.Dataset(images), subset_size=len(images), **options)
    openvino.save_model(graph, output, compress_to_fp16=False)


def nncf_openvino_transformer(model: Path, images: Any, output: Path) -> None:
    import nncf

    nncf_openvino(model, images, output, model_type=nncf.ModelType.TRANSFORMER)


def batches(images: Any) -> list[dict[str, Any]]:
    """The calibration images as onnxsim and AIMET take them."""
    return [{"images": batch} for batch in images]


def onnxsim_static(model: Path, images: Any, output: Path, **options: Any) -> None:
    import onnxsim

    onnx.save(onnxsim.quantize_static(str(model), batches(images), **options), output)


def onnxsim_static_auto(model: Path, images: Any, output: Path) -> None:
    onnxsim_static(model, images, output, method="auto")


def onnxsim_auto(model: Path, images: Any, output: Path) -> None:
    """The scheme that it recommends itself, within its own budget of 2 %."""
    import onnxsim

    onnx.save(onnxsim.quantize_auto(str(model), calibration_data=batches(images)), output)


def aimet(model: Path, images: Any, output: Path, **options: Any) -> None:
    from aimet_onnx.quantsim import QuantizationSimModel

    simulation = QuantizationSimModel(onnx.load(model), **options)
    simulation.compute_encodings(batches(images))
    onnx.save(simulation.to_onnx_qdq(prequantize_constants=True), output)


def aimet_tf_enhanced(model: Path, images: Any, output: Path) -> None:
    aimet(model, images, output, quant_scheme="tf_enhanced")


def quark(model: Path, images: Any, output: Path, config: str = "A8W8") -> None:
    from onnxruntime.quantization import CalibrationDataReader
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    class Reader(CalibrationDataReader):
        found = iter(batches(images))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.found, None)

    quantizer = ModelQuantizer(Config(global_quant_config=get_default_config(config)))
    model, output = model.resolve(), output.resolve()
    with contextlib.chdir(output.parent):  # it leaves a report in the working folder
        quantizer.quantize_model(str(model), str(output), Reader())


def quark_transformer(model: Path, images: Any, output: Path) -> None:
    quark(model, images, output, "INT8_TRANSFORMER_DEFAULT")


METHODS: dict[str, Callable[[Path, Any, Path], None]] = {
    "ort-static": onnxruntime_static,
    "ort-static-u8": onnxruntime_static_u8,
    "ort-dynamic": onnxruntime_dynamic,
    "nncf": nncf_onnx,
    "nncf-transformer": nncf_onnx_transformer,
    "nncf-openvino": nncf_openvino,
    "nncf-openvino-transformer": nncf_openvino_transformer,
    "onnxsim-static": onnxsim_static,
    "onnxsim-static-auto": onnxsim_static_auto,
    "onnxsim-auto": onnxsim_auto,
    "aimet": aimet,
    "aimet-tf-enhanced": aimet_tf_enhanced,
    "quark": quark,
    "quark-transformer": quark_transformer,
}


if __name__ == "__main__":
    method, model, images, output = sys.argv[1:]
    METHODS[method](Path(model), np.load(images), Path(output))
