"""Which output of a bundle a task is about."""

from __future__ import annotations

from vitdeploy.bundle import Bundle, Manifest, TensorSpec
from vitdeploy.errors import UsageError

LOGITS = "logits"

CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
_WANTED = {
    CLASSIFICATION: ("a classifier", "class scores [N, classes]", "export the network without --features"),
    SEGMENTATION: (
        "a segmentation network",
        "scores [N, classes, height, width] of two classes or more, or whole numbers [N, height, width]",
        "--task features, or --metric FILE.py:FUNCTION for a figure of your own",
    ),
}


def fitting_outputs(manifest: Manifest, kind: str) -> list[TensorSpec]:
    """The outputs that classification or segmentation may be about; none in a bundle that declares features."""
    if is_pyramid(manifest):
        return []
    fits = _scores_classes if kind == CLASSIFICATION else _scores_pixels
    return [spec for spec in manifest.outputs if fits(spec)]


def is_pyramid(manifest: Manifest) -> bool:
    """Whether a bundle declares its outputs to be features."""
    return bool(manifest.graph.get("strides"))


def choose_output(bundle: Bundle, kind: str, wanted: str | None) -> TensorSpec:
    """The output that was asked for, or the one that fits; of several that fit the one called `logits`.

    Raises UsageError where the output is not there or is of another kind, and where several fit.
    """
    what, form, fix = _WANTED[kind]
    fitting = fitting_outputs(bundle.manifest, kind)
    shown = ", ".join(map(str, bundle.manifest.outputs))
    if wanted is not None:
        named = next((spec for spec in bundle.manifest.outputs if spec.name == wanted), None)
        if named is None:
            names = ", ".join(spec.name for spec in bundle.manifest.outputs)
            raise UsageError(f"{bundle.path} has no output {wanted!r}", why=f"its outputs are {shown}", fix=names)
        if named not in fitting:
            raise UsageError(
                f"the output {wanted} of {bundle.path} is not that of {what}", why=f"it is {named}, not {form}", fix=fix
            )
        return named
    if not fitting:
        raise UsageError(f"{bundle.path} is not {what}", why=f"it has no output {form}, only {shown}", fix=fix)
    chosen = [spec for spec in fitting if spec.name == LOGITS] or fitting
    if len(chosen) > 1:
        raise UsageError(
            f"{bundle.path} has several outputs that may be those of {what}",
            why=", ".join(map(str, chosen)),
            fix=" or ".join(f"--output {spec.name}" for spec in chosen),
        )
    return chosen[0]


def _scores_classes(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and isinstance(spec.shape[1], int) and spec.dtype.startswith("float")


def _scores_pixels(spec: TensorSpec) -> bool:
    if spec.dtype.startswith("float"):
        return len(spec.shape) == 4 and isinstance(spec.shape[1], int) and spec.shape[1] >= 2
    return len(spec.shape) == 3 or (len(spec.shape) == 4 and spec.shape[1] == 1)
