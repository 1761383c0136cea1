"""docs/jetson.md: its commands parse, its programs run, its container copies what is there, its table is the data."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundles import LABELS, SIZE, write_tiny_bundle
from tests.conftest import ROOT
from tests.rows import TARGETS
from tests.tensorrt.conftest import world as world
from tests.tensorrt.fake_tensorrt import World
from tests.tensorrt.int8 import write_int8_bundle
from vitdeploy import build
from vitdeploy.cli import main, whole_parser
from vitdeploy.machine.settings import machine_conditions, machine_settings
from vitdeploy.platforms.boards import BOARDS, PLATFORMS
from vitdeploy.platforms.versions import dotted

PAGE = (ROOT / "docs" / "jetson.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
LINES = [line.removeprefix("ExecStartPre=") for _, block in BLOCKS for line in block.splitlines()]
_COMMAND = re.compile(r"(?:^|\s)((?:[~/]\S*/bin/)?vitdeploy [a-z]+(?: .*)?)$")
COMMANDS = [found[1] for line in LINES if (found := _COMMAND.search(line))]
PROGRAMS = [block for language, block in BLOCKS if language == "python"]
BUILDS = [command for command in COMMANDS if shlex.split(command)[1] == "build"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    _, name, *rest = shlex.split(command.partition(" > ")[0])
    assert whole_parser().parse_args([name, *rest]).command == name


def test_the_page_shows_the_whole_way() -> None:
    shown = {shlex.split(command)[1] for command in COMMANDS}
    assert shown == {"export", "check", "doctor", "build", "verify", "benchmark", "predict"}


@pytest.mark.parametrize("command", BUILDS)
def test_every_build_does_what_the_page_says(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dynamic = "dynamic" in command
    if "lemevit-int8" in command:
        write_int8_bundle(tmp_path / "lemevit-int8")
        world.cost = lambda model: 1.0
        monkeypatch.setattr(time, "perf_counter", lambda: world.clock)
    else:
        write_tiny_bundle(tmp_path / ("lemevit-dynamic" if dynamic else "lemevit"), "batch" if dynamic else 2)
    _, *words = shlex.split(command)
    words = [word.removeprefix("/opt/vitdeploy/") for word in words]
    code = main(words)
    if "--dla" in words:  # this stand-in is no Jetson
        assert code == 2
        assert "there is no DLA to build for" in capsys.readouterr().err
        return
    assert code == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert {word for word in words if word in ("kernels.cache", "builder.log")} <= made


def run(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    exec(compile(program, "docs/jetson.md", "exec"), {"__name__": "__main__"})


def test_the_first_program_builds_predicts_and_describes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "lemevit", 1)
    Image.new("RGB", (SIZE, SIZE), "red").save("photo.jpg")
    run(PROGRAMS[0], [], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("True")
    assert lines[1].split()[0] in LABELS
    assert lines[2].endswith("pinned")


def test_the_camera_program_answers_the_frames_of_a_camera_on_tensorrt(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "python examples/camera.py lemevit 0\n" in PAGE
    frames = [np.full((20, 30, 3), value, np.uint8) for value in (10, 200)]

    class Camera:
        def __init__(self, source: Any, backend: int) -> None:
            assert (source, backend) == (0, 0)

        def read(self) -> tuple[bool, np.ndarray | None]:
            return (True, frames.pop()) if frames else (False, None)

        def isOpened(self) -> bool:  # noqa: N802
            return True

        def release(self) -> None:
            pass

    fake = ModuleType("cv2")
    fake.__dict__.update(SimpleNamespace(VideoCapture=Camera, CAP_GSTREAMER=1800, CAP_ANY=0).__dict__)
    monkeypatch.setitem(sys.modules, "cv2", fake)
    bundle = write_tiny_bundle(tmp_path / "lemevit", 1)
    assert build(bundle).passed
    monkeypatch.setattr(sys, "argv", ["camera.py", str(bundle.path), "0", "--runtime", "tensorrt"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / "camera.py"), run_name="__main__")
    assert ended.value.code == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert len(lines) in (1, 2), "the first may be dropped, the newest never"
    assert all(line.split("\t")[1] in LABELS for line in lines)
    assert f"2 frames, {len(lines)} answered, {2 - len(lines)} dropped" in told.err


def test_the_watching_program_answers_images_and_outlives_broken_ones(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, folder = write_tiny_bundle(tmp_path / "lemevit", 1), tmp_path / "images"
    folder.mkdir()
    assert build(bundle).passed
    Image.new("RGB", (SIZE, SIZE), "red").save(folder / "good.jpg")
    (folder / "bad.jpg").write_bytes(b"no image")

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run(PROGRAMS[1], [str(bundle.path), str(folder)], monkeypatch)
    bad, good = capsys.readouterr().out.split("good.jpg")
    assert bad.startswith("bad.jpg\t")
    assert good.split("\t")[1] in LABELS


def test_the_container_copies_and_runs_what_the_page_makes() -> None:
    file, base = [block for language, block in BLOCKS if language == "dockerfile"]
    assert len(base.splitlines()) < len(file.splitlines())  # of JetPack 7, to replace the first lines
    copied = re.findall(r"^COPY (\S+) (\S+)$", file, re.MULTILINE)
    assert copied == [("lemevit", "/opt/vitdeploy/lemevit"), ("watch.py", "/opt/vitdeploy/watch.py")]
    (words,) = re.findall(r"^CMD \[(.*)\]$", file, re.MULTILINE)
    assert all(target in words for _, target in copied)
    service = next(block for language, block in BLOCKS if language == "ini")
    start = re.search(r"^ExecStart=(.*)$", service, re.MULTILINE)
    assert start is not None
    assert start[1].split()[:3] == [word.strip(' "') for word in words.split(",")][:3]


def test_a_benchmark_on_a_board_records_mode_clocks_and_temperatures(tmp_path: Path) -> None:
    """Files as they are on an Orin; `vitdeploy benchmark` puts both into its report."""
    files = {
        "var/lib/nvpmodel/status": "pmode:0002",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MODE_30W >",
        "sys/class/devfreq/17000000.ga10b/governor": "nvhost_podgov",
        "sys/class/devfreq/17000000.ga10b/min_freq": "306000000",
        "sys/class/devfreq/17000000.ga10b/max_freq": "612000000",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone1/temp": "48500",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    settings = machine_settings(tmp_path)
    assert settings["power_mode"] == "MODE_30W (2)"
    assert settings["gpu_clocks"] == {"17000000.ga10b": "nvhost_podgov, 306000000 to 612000000 Hz"}
    assert machine_conditions(tmp_path)["temperatures_c"] == {"gpu-thermal": 48.5}


@pytest.mark.parametrize("code", PROGRAMS)
def test_its_python_uses_what_is_public(code: str) -> None:
    import vitdeploy

    for name in re.findall(r"vitdeploy\.(\w+)", code):
        assert name in vitdeploy.__all__


def test_its_table_is_the_data() -> None:
    row = r"^\| \d[^|]* \| [^|]* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| `--target (\w+)` \| `(.*)` \|$"
    rows = re.findall(row, PAGE, re.MULTILINE)
    assert len(rows) == 6
    for tensorrt, cuda, python, target, name in rows:
        platform = PLATFORMS[name]
        assert (dotted(platform.oldest), platform.cuda, platform.python) == (tensorrt, cuda, python)
        assert target in TARGETS
    assert all(f"`{board}`" in PAGE for board in BOARDS)
