"""Where does a runtime leave the reference, and what is the smallest model that shows it?"""

from __future__ import annotations

from pathlib import Path

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.divergence.comparison import Comparison
from vitdeploy.divergence.report import BisectReport
from vitdeploy.divergence.reproducer import check_folder
from vitdeploy.divergence.source import open_source
from vitdeploy.errors import UsageError
from vitdeploy.runtime.backends import Backend, find_backend
from vitdeploy.runtime.options import Options, is_untrusted

REFERENCE = "reference"


@checked_arguments
def bisect(
    source: Bundle | str | Path,
    *,
    runtime: str,
    against: str = REFERENCE,
    inputs: str | Path | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    key: str | Path | None = None,
    threads: int | None = None,
    num_requests: int | None = None,
    compute_precision: str | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    untrusted: bool | None = None,
) -> BisectReport:
    """Find the first tensor, and the first block, that a runtime computes otherwise than the file says.

    The reference is what the ONNX standard says that the file computes, node by node and in its own types. The graph is
    cut, what crosses the cut is compared, and the cuts are halved.

    Args:
        source: A bundle, its folder, or any `.onnx` file.
        runtime: A name of `vitdeploy doctor`. `torch` rebuilds the network of an FP32 bundle, and names the module.
        against: `reference`, or another runtime that is trusted instead.
        inputs: `.npz` with an array for each input; by default the reference of the bundle, or random ones.
        seed: Of random inputs.
        output: New folder for the smallest part that is computed wrongly on its own: `block.onnx`, `inputs.npz`,
            `expected.npz` and `reproduce.py`, which needs numpy and the runtime alone and ends with 1.
        key: PEM file of a public key that a bundle has to be signed with, see `vitdeploy.verify`.
        threads: Threads of computation, see `vitdeploy.load`.
        num_requests: Calls that are computed at once, see `vitdeploy.load`.
        compute_precision: `fp32`, `bf16` or `fp16`, see `vitdeploy.load`; the bounds are those of what it is.
        device: What computes, see `vitdeploy.load`.
        cache: Folder of compiled models, see `vitdeploy.load`.
        checkpoint: File with the weights of the bundle, for the runtime `torch`.
        untrusted: Has to be false, for cut graphs run in this process.

    Returns:
        The report. Outputs that differ are no exception, but `passed` is False.

    Raises:
        BundleError, InputError: The bundle is damaged, or the file is no ONNX model.
        UsageError: There is no such runtime, an option does not fit, or the inputs are not those of the model.
        BackendError: The runtime, or ONNX Runtime for the reference, is missing or refuses the model.
        GateError: With `key`: the bundle is not signed by it.
    """
    options = Options(
        threads=threads,
        num_requests=num_requests,
        compute_precision=compute_precision,
        device=device,
        cache=cache,
        checkpoint=checkpoint,
        untrusted=untrusted,
    )
    kind = find_backend(runtime)
    other = None if against == REFERENCE else find_backend(against)
    _check(kind, other, options)
    if seed < 0:
        raise UsageError(f"the seed is {seed}", fix="--seed 0, or a larger number")
    folder = None if output is None else Path(output)
    if folder is not None:
        check_folder(folder)
    opened = open_source(source, inputs, seed, key)
    if kind.reference:
        from vitdeploy.divergence.network import bisect_network

        return bisect_network(opened, options, folder)
    return Comparison(opened, kind, other, options).report(folder)


def _check(kind: type[Backend], other: type[Backend] | None, options: Options) -> None:
    """UsageError for two sides that cannot be compared."""
    if is_untrusted(options.untrusted):
        raise UsageError(
            "a stranger's bundle is not bisected",
            why="its graph is cut and run in this process, which has no limit of time and memory",
            fix="vitdeploy verify BUNDLE --untrusted",
        )
    if other is not None and other.reference:
        raise UsageError(
            f"{other.name} cannot be what is trusted",
            why="it computes a network, and tells nothing of the tensors inside of a file",
            fix=f"--runtime {other.name}, which is held against the file; or --against {REFERENCE}",
        )
    if other is kind and options.compute_precision is None:
        raise UsageError(
            f"{kind.name} is compared with itself",
            fix=f"--against {REFERENCE}; or --compute-precision bf16, held against what it computes without it",
        )
