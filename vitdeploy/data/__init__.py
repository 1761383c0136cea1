"""DATA: images to calibrate, validate or train with, from folders, zips, arrays and iterables."""

from __future__ import annotations

from vitdeploy.data.dataset import Dataset, DataSource
from vitdeploy.data.opening import open_data

__all__ = ["DataSource", "Dataset", "open_data"]
