"""The programs that a bundle can be handed to, by name; none is imported before it is asked for."""

from __future__ import annotations

from vitdeploy.registry import Registry
from vitdeploy.serving.content import Destination

_DESTINATIONS: Registry[Destination] = Registry(
    "vitdeploy.destinations",
    kind="destination",
    option="--to",
    kept={
        "triton": "vitdeploy.serving.triton:TRITON",
        "openvino-model-server": "vitdeploy.serving.model_server:MODEL_SERVER",
        "deepstream": "vitdeploy.serving.deepstream:DEEPSTREAM",
        "dlstreamer": "vitdeploy.serving.dlstreamer:DLSTREAMER",
        "trtexec": "vitdeploy.serving.trtexec:TRTEXEC",
        "cpp": "vitdeploy.serving.cpp:CPP",
    },
    aliases={"ovms": "openvino-model-server"},
)


def destination_names() -> tuple[str, ...]:
    """The names that `find_destination` knows."""
    return _DESTINATIONS.names()


def full_name(name: str) -> str:
    """`openvino-model-server` for `ovms`; any other name as it is."""
    return _DESTINATIONS.full(name)


def find_destination(name: str) -> Destination:
    """The destination called `name`; a UsageError offers the names there are."""
    return _DESTINATIONS.find(name)
