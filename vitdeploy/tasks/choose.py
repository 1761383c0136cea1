"""Which task a bundle and DATA are about; what is not certain is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.data import Dataset, DataSource, open_data
from vitdeploy.data.arrays import array_names, load_arrays
from vitdeploy.data.containers import is_container
from vitdeploy.data.masks import MASKS, has_masks, open_masks
from vitdeploy.data.named import open_samples
from vitdeploy.data.slots import Slot, takes_images_alone
from vitdeploy.errors import InputError, UsageError
from vitdeploy.preprocess import to_mask
from vitdeploy.tasks.classification.task import Classification
from vitdeploy.tasks.features import Features
from vitdeploy.tasks.metric import Metric, MetricFunction
from vitdeploy.tasks.outputs import CLASSIFICATION, SEGMENTATION, choose_output, fitting_outputs, is_pyramid
from vitdeploy.tasks.segmentation.task import IGNORE, Segmentation
from vitdeploy.tasks.task import Task
from vitdeploy.user_code import find_function

Array = NDArray[Any]
Targets = Sequence[Any] | Array | Mapping[str, Array]

FEATURES = "features"
TASKS = (CLASSIFICATION, SEGMENTATION, FEATURES)


class Asked(NamedTuple):
    """What was said of the task.

    task     one of `TASKS`; None to find it
    metric   `file.py:function` or a function; None for the figures of the task
    output   the name of the output that is judged; None for the one that fits
    ignore   the number in masks that is not judged; None for 255
    labels   names of the classes, which may be empty
    targets  what is true of the items, where DATA is an iterable
    """

    task: str | None = None
    metric: str | MetricFunction | None = None
    output: str | None = None
    ignore: int | None = None
    labels: tuple[str, ...] = ()
    targets: Targets | None = None


def open_task(bundle: Bundle, data: DataSource, asked: Asked) -> Task:
    """The task with its DATA.

    Raises UsageError for options that do not fit together and where it is not certain which task is meant, and
    InputError for DATA that does not fit it.
    """
    _check(asked)
    if is_container(data) and asked.targets is None:
        data = open_data(data)  # once, since reading its index takes time
    if asked.metric is not None:
        return _metric(bundle, data, asked, asked.metric)
    name = asked.task or find_task(bundle, data, asked.targets)
    if asked.ignore is not None and name != SEGMENTATION:
        raise UsageError(
            f"--ignore-index is for masks, and the task is {name}", fix="leave it out, or --task segmentation"
        )
    if name == SEGMENTATION:
        masks = None if asked.targets is None else _as_masks(asked.targets)
        return Segmentation(open_masks(data, masks), bundle, asked.output, _ignored(asked))
    if name == FEATURES:
        _no_targets(asked, name)
        return Features(_images(data, bundle), bundle, asked.output)
    return Classification(_labelled(data, bundle, asked), bundle, asked.output)


def find_task(bundle: Bundle, data: DataSource, targets: Targets | None = None) -> str:
    """The name of the task that the outputs and DATA leave; UsageError where they leave none or several."""
    if is_pyramid(bundle.manifest):
        return FEATURES
    fits = [name for name in (CLASSIFICATION, SEGMENTATION) if fitting_outputs(bundle.manifest, name)]
    masks, labels = _knows(data, targets)
    known = [name for name, there in ((CLASSIFICATION, labels), (SEGMENTATION, masks)) if there]
    both = [name for name in fits if name in known]
    if len(both) == 1:
        return both[0]
    if fits == [CLASSIFICATION] and not known:
        return CLASSIFICATION  # which says that labels are missing, and what else there is
    shown = ", ".join(map(str, bundle.manifest.outputs))
    what = {CLASSIFICATION: "labels", SEGMENTATION: "masks"}
    has = " and ".join(what[name] for name in known) or "neither labels nor masks"
    raise UsageError(
        f"it is not certain what {bundle.path} is to be validated for",
        why=f"its outputs are {shown}, and DATA has {has}",
        fix=" or ".join(f"--task {name}" for name in (both or [*fits, FEATURES])) + ", or --metric FILE.py:FUNCTION",
    )


def slots_of(manifest: Manifest) -> tuple[Slot, ...]:
    """The inputs of a bundle as DATA fills them."""
    return tuple(Slot(spec.name, spec.shape[1:], spec.dtype, spec.name in manifest.images) for spec in manifest.inputs)


def _check(asked: Asked) -> None:
    if asked.task is not None and asked.task not in TASKS:
        raise UsageError(f"there is no task called {asked.task!r}", fix=" or ".join(f"--task {one}" for one in TASKS))
    if asked.metric is not None and asked.task is not None:
        raise UsageError(
            f"--metric and --task {asked.task} exclude each other",
            why="the function makes the figures, and a task would make others",
            fix="one of them",
        )
    if asked.metric is not None and asked.output is not None:
        raise UsageError("--metric gets all outputs by name", fix="leave --output out")


def _knows(data: DataSource, targets: Targets | None) -> tuple[bool, bool]:
    """Whether DATA has masks, and whether it has labels."""
    if targets is not None:
        dense = _is_dense(targets)
        return dense, not dense
    if has_masks(data):
        names = _arrays_in(data)
        return True, "labels" in names
    if isinstance(data, Dataset):
        return False, data.targets is not None
    if isinstance(data, (str, Path)):
        if _arrays_in(data):
            return False, "labels" in _arrays_in(data)
        return False, open_data(data).targets is not None
    return False, False


def _arrays_in(data: DataSource) -> tuple[str, ...]:
    path = Path(data) if isinstance(data, (str, Path)) else None
    return array_names(path) if path is not None and path.suffix.lower() == ".npz" else ()


def _is_dense(targets: Targets) -> bool:
    if isinstance(targets, Mapping) or len(targets) == 0:
        return False
    return np.asarray(targets[0]).ndim == 2


def _as_masks(targets: Targets) -> Iterable[Array]:
    if not _is_dense(targets):
        raise InputError(
            "the targets are no masks",
            why="segmentation takes one mask of whole numbers [H, W] for each image",
            fix="targets=[mask, mask, …]",
        )
    return [np.asarray(mask) for mask in targets]


def _ignored(asked: Asked) -> int:
    return IGNORE if asked.ignore is None else asked.ignore


def _no_targets(asked: Asked, name: str) -> None:
    if asked.targets is not None:
        raise UsageError(
            f"targets are of no use for {name}", fix="leave targets out, or name the task that they are for"
        )


def _images(data: DataSource, bundle: Bundle) -> Dataset:
    """The samples of DATA, whose labels or masks do not count."""
    slots = slots_of(bundle.manifest)
    if takes_images_alone(slots) and isinstance(data, (str, Path)) and has_masks(data) and not _arrays_in(data):
        return open_masks(data).images
    return open_samples(data, slots)


def _labelled(data: DataSource, bundle: Bundle, asked: Asked) -> Dataset:
    if not takes_images_alone(slots_of(bundle.manifest)):
        raise UsageError(
            f"{bundle.path} cannot be validated as a classifier of images",
            why=f"its inputs are {', '.join(map(str, slots_of(bundle.manifest)))}",
            fix="--task features, or --metric FILE.py:FUNCTION, with an .npz of an array for each input",
        )
    if isinstance(asked.targets, Mapping):
        raise UsageError("named targets are for a metric of your own", fix="targets=[class number, …], or metric=")
    choose_output(bundle, CLASSIFICATION, asked.output)  # folders called images and masks are no classes either
    return open_data(data, labels=asked.labels, targets=asked.targets)


def _metric(bundle: Bundle, data: DataSource, asked: Asked, metric: str | MetricFunction) -> Metric:
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    function = find_function(metric) if isinstance(metric, str) else metric
    _check_function(function, name)
    dataset, targets = _known(bundle, data, asked)
    return Metric(dataset, targets, bundle, function, name)


def _check_function(function: MetricFunction, name: str) -> None:
    try:
        inspect.signature(function).bind({}, {})
    except ValueError:  # a function that does not tell what it takes
        return
    except TypeError as error:
        raise UsageError(
            f"{name} cannot be called: {error}",
            why="it is called with the outputs and the targets of all samples, each a mapping from names to arrays",
            fix="def figure(outputs, targets): return a number, or numbers by name",
        ) from None


def _known(bundle: Bundle, data: DataSource, asked: Asked) -> tuple[Dataset, Mapping[str, Any]]:
    """The samples, and everything that DATA knows of them: `labels`, `masks` in the network's frame, other arrays."""
    slots = slots_of(bundle.manifest)
    if asked.targets is not None:
        dataset = open_samples(data, slots)
        found = asked.targets if isinstance(asked.targets, Mapping) else {"targets": asked.targets}
        return dataset, _rows(found, len(dataset), dataset.where)
    if _arrays_in(data):
        path = Path(str(data))
        dataset = open_samples(data, slots, labels=asked.labels)
        inputs = {slot.name for slot in slots} | ({"images"} if takes_images_alone(slots) else set())
        others = {name: array for name, array in load_arrays(path).items() if name not in inputs}
        if dataset.targets is not None and "labels" in others:
            others["labels"] = dataset.targets
        return dataset, _rows(others, len(dataset), str(path))
    if has_masks(data):
        masked = open_masks(data)
        recipe = bundle.manifest.recipe
        return masked.images, {MASKS: lambda index: to_mask(masked.mask(index), recipe, _ignored(asked))}
    dataset = open_samples(data, slots, labels=asked.labels)
    return dataset, {} if dataset.targets is None else {"labels": dataset.targets}


def _rows(targets: Mapping[str, Any], count: int, where: str) -> dict[str, Array]:
    found = {str(name): np.asarray(array) for name, array in targets.items()}
    for name, array in found.items():
        if not array.ndim or len(array) != count:
            raise InputError(
                f"the array {name} of {where} is {array.dtype} {list(array.shape)}",
                why=f"there are {count} samples, and what is known of each is a row of it",
                fix=f"an array of {count} rows, or leave it out",
            )
    return found
