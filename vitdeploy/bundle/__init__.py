"""A bundle on disk: a model with its manifest and its proof; reading it, and writing it whole or not at all."""

from __future__ import annotations

from vitdeploy.bundle.bundle import MODEL, REFERENCE, Bundle
from vitdeploy.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    SIGNATURE,
    FileRecord,
    Manifest,
    ModelRecord,
    TensorSpec,
    WeightsRecord,
)
from vitdeploy.bundle.reference import Reference
from vitdeploy.bundle.writer import BundleWriter

__all__ = [
    "MANIFEST",
    "MODEL",
    "REFERENCE",
    "SCHEMA_VERSION",
    "SIGNATURE",
    "Bundle",
    "BundleWriter",
    "FileRecord",
    "Manifest",
    "ModelRecord",
    "Reference",
    "TensorSpec",
    "WeightsRecord",
]
