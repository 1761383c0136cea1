"""How the GPUs of this machine are asked for: once a process, whoever asks, and whatever comes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from vitdeploy.machine import gpus
from vitdeploy.machine.gpus import Gpu, read_gpus
from vitdeploy.machine.settings import machine_settings

SMI = "NVIDIA GeForce RTX 4090, 8.9, 24564\nTesla T4, 7.5, 15360\n"


@pytest.mark.parametrize(("said", "found"), [(SMI, 2), ("", 0)])
def test_nvidia_smi_is_started_once_also_by_threads_and_where_it_fails(
    monkeypatch: pytest.MonkeyPatch, said: str, found: int
) -> None:
    started: list[str] = []

    def run_probe(command: Sequence[str], **options: object) -> str:
        started.append(command[0])
        time.sleep(0.05)
        return said if command[0] == "nvidia-smi" else ""

    monkeypatch.setattr(gpus, "run_probe", run_probe)
    gpus._probe_gpus.cache_clear()
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: read_gpus(), range(16)))
        machine_settings()
        assert started.count("nvidia-smi") == 1
        assert len(started) <= 2, "and the driver at most once besides"
        assert {len(answer) for answer in answers} == {found}
    finally:
        gpus._probe_gpus.cache_clear()


def test_another_machine_described_by_a_folder_is_read_each_time(tmp_path: object) -> None:
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"  # type: ignore[operator]
    assert read_gpus(tmp_path) == ()  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t NVIDIA L4\n")
    assert read_gpus(tmp_path) == (Gpu("NVIDIA L4", None),)  # type: ignore[arg-type]
