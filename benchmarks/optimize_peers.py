"""A search of another tool: from an FP32 graph and images to the files that it finds, within a drop of accuracy.

    python optimize_peers.py METHOD FOLDER MAX_DROP MINUTES

FOLDER holds fp32/model.onnx, images.npy (float32 [n, 1, 3, height, width]) and classes.npy of the same n; the first
`CALIBRATE` calibrate and the others judge. What is found is written to FOLDER/METHOD/peer-*.onnx or .xml. It needs no
vitdeploy and runs in environments of its own, with the onnx, onnxruntime and openvino of the other side:

    python -m venv olive
    olive/bin/pip install olive-ai==0.13.0 requests onnx==1.23.2 onnxruntime==1.31.1 torch==2.13.0

That of NNCF is the one of int8_peers.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

CALIBRATE = 300


def split(folder: Path) -> tuple[Any, Any, Any]:
    """The images to calibrate on, those that judge, and the classes of these."""
    images, classes = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "classes.npy")
    return images[:CALIBRATE], images[CALIBRATE:], classes[CALIBRATE:]


def output(folder: Path, method: str, name: str, suffix: str) -> Path:
    """Where a file that was found is written."""
    path = folder / method / f"peer-{name}{suffix}"
    path.parent.mkdir(exist_ok=True)
    return path


def hits(logits: Iterable[Any], classes: Iterable[int]) -> tuple[float, list[float]]:
    """Top-1 from 0 to 1, and of every image whether it was right."""
    right = [float(found.argmax() == true) for found, true in zip(logits, classes, strict=True)]
    return sum(right) / len(right), right


def nncf_onnxruntime(folder: Path, max_drop: float, minutes: float) -> None:
    import nncf
    import onnx
    import onnxruntime

    calibrate, judge, classes = split(folder)

    def top1(model: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        chosen = list(items)
        return hits([session.run(None, image)[0] for image, _ in chosen], [true for _, true in chosen])

    found = nncf.quantize_with_accuracy_control(
        onnx.load(folder / "fp32/model.onnx"),
        nncf.Dataset(calibrate, lambda image: {"images": np.asarray(image)}),
        nncf.Dataset([({"images": np.asarray(image)}, true) for image, true in zip(judge, classes, strict=True)]),
        top1,
        max_drop=max_drop / 100,
        subset_size=len(calibrate),
    )
    onnx.save(found, output(folder, "nncf-onnxruntime", "int8", ".onnx"))


def nncf_openvino(folder: Path, max_drop: float, minutes: float) -> None:
    import nncf
    import openvino

    calibrate, judge, classes = split(folder)

    def top1(model: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        chosen = list(items)
        return hits([next(iter(model(image).values())) for image, _ in chosen], [true for _, true in chosen])

    found = nncf.quantize_with_accuracy_control(
        openvino.convert_model(folder / "fp32/model.onnx"),
        nncf.Dataset([np.asarray(image) for image in calibrate]),
        nncf.Dataset([(np.asarray(image), true) for image, true in zip(judge, classes, strict=True)]),
        top1,
        max_drop=max_drop / 100,
        subset_size=len(calibrate),
    )
    openvino.save_model(found, output(folder, "nncf-openvino", "int8", ".xml"), compress_to_fp16=False)


def olive_onnxruntime(folder: Path, max_drop: float, minutes: float) -> None:
    """Olive's own space of static and dynamic quantization, searched by TPE for accuracy, then latency.

    For OpenVINO it has none: its pass calls NNCF as `nncf_openvino` does.
    """
    import olive
    from olive.data.registry import Registry

    @Registry.register_dataset("arrays")  # type: ignore[untyped-decorator]
    def arrays(folder: str, judge: bool, **_: Any) -> Any:
        import torch

        class Arrays(torch.utils.data.Dataset):  # type: ignore[type-arg, misc]
            calibrate, images, classes = split(Path(folder))

            def __len__(self) -> int:
                return len(self.images if judge else self.calibrate)

            def __getitem__(self, index: int) -> Any:
                image = (self.images if judge else self.calibrate)[index][0]
                return {"images": torch.tensor(image)}, int(self.classes[index]) if judge else 0

        return Arrays()

    @Registry.register_post_process("most_likely")  # type: ignore[untyped-decorator]
    def most_likely(outputs: Any, **_: Any) -> Any:
        return outputs.argmax(-1)

    def data(name: str, judge: bool) -> dict[str, Any]:
        return {
            "name": name,
            "type": "DataContainer",
            "load_dataset_config": {"type": "arrays", "params": {"folder": str(folder), "judge": judge}},
            "pre_process_data_config": {"type": "skip_pre_process"},
            "post_process_data_config": {"type": "most_likely"},
            "dataloader_config": {"batch_size": 1},
        }

    one_thread = {"onnx": {"session_options": {"intra_op_num_threads": 1}}}
    accuracy = {
        "name": "accuracy",
        "type": "accuracy",
        "backend": "torch_metrics",
        "data_config": "judge",
        "sub_types": [
            {
                "name": "accuracy_score",
                "priority": 1,
                "metric_config": {"task": "multiclass", "num_classes": 10},
                "goal": {"type": "max-degradation", "value": max_drop / 100},
            }
        ],
        "user_config": {"inference_settings": one_thread},
    }
    latency = {
        "name": "latency",
        "type": "latency",
        "data_config": "judge",
        "sub_types": [{"name": "avg", "priority": 2, "goal": {"type": "percent-min-improvement", "value": 1}}],
        "user_config": {"inference_settings": one_thread},
    }
    config = {
        "input_model": {"type": "OnnxModel", "model_path": str(folder / "fp32/model.onnx")},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [data("calibration", False), data("judge", True)],
        "evaluators": {"both": {"type": "OnnxEvaluator", "metrics": [accuracy, latency]}},
        "passes": {"quantization": {"type": "OnnxQuantization", "data_config": "calibration"}},
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "tpe",
            "max_time": int(54 * minutes),
            "output_model_num": 3,
        },
        "host": "here",
        "target": "here",
        "evaluator": "both",
        "output_dir": str(folder / "olive"),
        "cache_dir": str(folder / "olive-cache"),
    }
    found = olive.run(config)
    best = sorted(found.get_output_models(), key=lambda model: -model.metrics_value["accuracy-accuracy_score"]["value"])
    for number, model in enumerate(best[:3]):
        target = output(folder, "olive-onnxruntime", str(number), ".onnx")
        target.write_bytes(Path(model.model_path).read_bytes())
        target.with_suffix(".json").write_text(json.dumps(model.metrics_value, default=str))


METHODS: dict[str, Callable[[Path, float, float], None]] = {
    "nncf-onnxruntime": nncf_onnxruntime,
    "nncf-openvino": nncf_openvino,
    "olive-onnxruntime": olive_onnxruntime,
}


if __name__ == "__main__":
    method, where, drop, budget = sys.argv[1:]
    METHODS[method](Path(where), float(drop), float(budget))
