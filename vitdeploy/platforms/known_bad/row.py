"""What one row about a version says."""

from __future__ import annotations

from dataclasses import dataclass

WRONG, FAILS, SLOW = "wrong numbers", "does not work", "slow"
# The advice of several rows; the name of the runtime goes in.
VERIFY = "`vitdeploy verify BUNDLE --runtime {}` on this machine before it is used"


@dataclass(frozen=True)
class KnownBad:
    """One row.

    package   `tensorrt`, `onnxruntime`, `openvino`, `numpy` or `nvidia-modelopt`
    versions  comma-separated conditions, e.g. `>=10.4,<10.6`; empty for every version
    effect    WRONG, FAILS or SLOW
    affects   the graphs or the use that it hits
    symptom   what one sees
    advice    what to do
    issue     the issue or pull request, `owner/repository#number`; empty where there is none
    source    where the row is from
    sm, jetson, jetpack, architecture, lacks, has
              where it applies: ten times the compute capability, any Jetson, versions of JetPack, the processor, a
              property (`vnni`, `bf16`, `gpu`, `cuda kernels`) that is missing or there; empty means everywhere
    """

    package: str
    versions: str
    effect: str
    affects: str
    symptom: str
    advice: str
    issue: str = ""
    source: str = "issue thread"
    sm: tuple[int, ...] = ()
    jetson: bool = False
    jetpack: str = ""
    architecture: str = ""
    lacks: str = ""
    has: str = ""
