"""Devices that work, fail, die and lie: each is an outcome of its own, and the others go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import vitdeploy
from tests.bundles import write_tiny_bundle
from vitdeploy.cli import main
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from tests.hosts.boards import Lab

ROOT = Path(__file__).resolve().parent.parent.parent
STALE = {
    "error": "there is no proven TensorRT engine for tiny on Orin",
    "why": "loading builds none, since that takes minutes",
    "try": "vitdeploy build tiny",
    "exit_code": 2,
}


def fates(report: vitdeploy.FleetReport) -> dict[str, str]:
    """The status of each host."""
    return {one.host: one.status for one in report.outcomes}


def told(capsys: pytest.CaptureFixture[str], *words: object, code: int) -> Any:
    """What `vitdeploy fleet` prints with --json."""
    capsys.readouterr()
    assert main(["fleet", *map(str, words[:2]), "--json", *map(str, words[2:])]) == code
    return json.loads(capsys.readouterr().out)


def test_the_devices_own_vitdeploy_verifies_a_bundle_that_is_copied_once(
    lab: Lab, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    board = lab.board("one")
    board.install_vitdeploy()
    (board.root / "proc/device-tree").mkdir(parents=True)
    (board.root / "proc/device-tree/model").write_bytes(b"Played Board\0")
    hosts = lab.hosts('runtime = "onnxruntime"')
    found = told(capsys, "verify", bundle, "--hosts", hosts, code=0)["hosts"][0]
    assert (found["status"], found["copied"], found["board"]) == ("passed", True, "Played Board")
    assert found["vitdeploy"] == vitdeploy.__version__
    assert found["result"]["passed"] is True
    (name,) = board.bundles
    sent = board.root / ".cache/vitdeploy/fleet" / name
    assert {path.name: path.read_bytes() for path in sent.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }
    again = vitdeploy.fleet("verify", bundle, hosts)
    assert again.outcomes[0].copied is False
    row = str(again).splitlines()[3]
    assert "Played Board, CPU" in row
    assert " dB" in row

    (sent / "model.onnx").write_bytes(b"x" * (sent / "model.onnx").stat().st_size)  # of the same length
    damaged = vitdeploy.fleet("verify", bundle, hosts).outcomes[0]
    assert damaged.status == "error"
    assert "model.onnx" in damaged.what
    (sent / "model.onnx").write_bytes(b"short")
    assert vitdeploy.fleet("verify", bundle, hosts).passed, "it is sent again"


def test_a_gate_that_fails_on_the_device_fails_here(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    lab.board("one").install_vitdeploy()
    wrong = write_tiny_bundle(tmp_path / "wrong", error=1.0).path
    document = told(capsys, "verify", wrong, "--hosts", lab.hosts(), "--", "--runtime", "onnxruntime", code=1)
    assert document["passed"] is False
    assert document["hosts"][0]["status"] == "failed"
    assert document["hosts"][0]["result"]["passed"] is False
    assert document["hosts"][0]["why"]


def test_whatever_a_device_does_the_others_go_on(lab: Lab, bundle: Path) -> None:
    names = (
        "good",
        "dies",
        "full",
        "wrong",
        "unknown",
        "slow",
        "bare",
        "old",
        "garbage",
        "killed",
        "off",
        "stranger",
        "tight",
    )
    boards = {name: lab.board(name) for name in names}
    boards["dies"].dies_when_asked = True
    boards["full"].is_full = boards["tight"].has_no_room = True
    known = [board.known for name, board in boards.items() if name not in ("unknown", "wrong")]
    wrong = boards["good"].host_key.export_public_key().decode()
    known.append(f"[127.0.0.1]:{boards['wrong'].port} {wrong}")
    (lab.home / ".ssh/known_hosts").write_text("".join(known))
    boards["slow"].install("#!/bin/sh\nsleep 600\n")
    (boards["bare"].root / "bin/vitdeploy").unlink()
    boards["old"].answers({"error": "vitdeploy verify has no option --key", "why": None, "try": "x", "exit_code": 2}, 2)
    boards["garbage"].answers("<html>")
    boards["killed"].install("#!/bin/sh\nkill -KILL $$\n")
    hosts = lab.hosts()
    text = hosts.read_text().replace(f"port = {boards['off'].port}", "port = 1")
    text = text.replace("[hosts.slow]", "[hosts.slow]\ntimeout = 2")
    lab.new_key(lab.folder / "other")
    hosts.write_text(text.replace("[hosts.stranger]", '[hosts.stranger]\nkey = "other"'))
    report = vitdeploy.fleet("verify", bundle, hosts, output=lab.folder / "out", parallel=3)
    assert fates(report) == {
        "good": "passed",
        "dies": "connection lost",
        "full": "copy failed",
        "wrong": "host key",
        "unknown": "host key",
        "slow": "timed out",
        "bare": "no vitdeploy",
        "old": "error",
        "garbage": "no result",
        "killed": "no result",
        "off": "unreachable",
        "stranger": "login refused",
        "tight": "copy failed",
    }
    assert not report.passed
    assert [path.stem for path in sorted((lab.folder / "out").iterdir())] == sorted(names)
    outcomes = {one.host: one for one in report.outcomes}
    assert outcomes["good"].figures.numbers == "64.2 dB"
    assert all(one.what and (one.fix or one.why) for one in report.outcomes if not one.passed)
    for name in ("full", "tight"):
        assert boards[name].bundles == [], "nothing of it is left"
        assert "the disk of the device is full" in outcomes[name].what
    assert "it has 0.0 MB free" in (outcomes["tight"].why or "")
    for name in ("wrong", "unknown"):
        fix = outcomes[name].fix or ""
        assert f"ssh-keyscan -p {boards[name].port} 127.0.0.1" in fix
        assert (f"ssh-keygen -R '[127.0.0.1]:{boards[name].port}'" in fix) == (name == "wrong")
        assert "compare the fingerprint" in fix
        assert boards[name].times == 0
    assert "--key" in outcomes["old"].what
    assert outcomes["old"].why == f"the device has vitdeploy 9.9.9, and here is {vitdeploy.__version__}"
    for name in names:
        assert name in str(report)


def test_a_copy_that_breaks_off_leaves_no_bundle_and_the_next_one_succeeds(lab: Lab, bundle: Path) -> None:
    board = lab.board("one")
    board.dies_while_copying = True
    (lost,) = vitdeploy.fleet("verify", bundle, lab.hosts()).outcomes
    assert lost.status == "connection lost"
    assert [name for name in board.bundles if not name.endswith(".partial")] == []
    board.dies_while_copying = False
    assert vitdeploy.fleet("verify", bundle, lab.hosts()).passed
    assert len([name for name in board.bundles if not name.endswith(".partial")]) == 1


def test_what_lost_copies_left_is_removed_once_it_is_old(lab: Lab, bundle: Path) -> None:
    board = lab.board("one")
    assert vitdeploy.fleet("verify", bundle, lab.hosts()).passed
    (name,) = board.bundles
    folder = board.root / ".cache/vitdeploy/fleet"
    shutil.rmtree(folder / name)
    others = (f"{name}.0123abcd.partial", f"{name}.4567abcd.partial", "other-0123456789abcdef.0123abcd.partial")
    for other in others:
        (folder / other).mkdir()
    for other in (others[0], others[2]):
        os.utime(folder / other, (1, 1))
    assert vitdeploy.fleet("verify", bundle, lab.hosts()).passed
    assert board.bundles == sorted([name, *others[1:]])


def test_a_device_without_sftp_says_what_to_install(lab: Lab, bundle: Path) -> None:
    lab.board("one", has_sftp=False)
    (found,) = vitdeploy.fleet("verify", bundle, lab.hosts()).outcomes
    assert found.status == "copy failed"
    assert "openssh-sftp-server" in (found.fix or "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_keeps_what_was_there_and_says_how_to_go_on(number: int, lab: Lab, bundle: Path) -> None:
    lab.board("good")
    lab.board("slow").install("#!/bin/sh\nsleep 600\n")
    out = lab.folder / "out"
    words = ["fleet", "verify", str(bundle), "--hosts", str(lab.hosts()), "-o", str(out), "--json"]
    running = subprocess.Popen(
        [sys.executable, "-m", "vitdeploy", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while running.poll() is None and not (out / "good.json").exists():
            time.sleep(0.05)
        running.send_signal(number)
        printed, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert json.loads(printed)["error"] == "interrupted; the same command asks only the hosts that have not passed"
    assert [path.name for path in out.iterdir()] == ["good.json"]


def test_the_same_command_asks_only_those_that_have_not_passed(lab: Lab, bundle: Path) -> None:
    good, bad = lab.board("good"), lab.board("bad")
    bad.dies_when_asked = True
    hosts, out = lab.hosts(), lab.folder / "out"
    assert fates(vitdeploy.fleet("verify", bundle, hosts, output=out)) == {"good": "passed", "bad": "connection lost"}
    bad.dies_when_asked = False
    second = vitdeploy.fleet("verify", bundle, hosts, output=out)
    assert second.passed
    assert [one.kept for one in second.outcomes] == [True, False]
    assert (good.times, bad.times) == (1, 2)
    assert "passed (kept)" in str(second)
    assert vitdeploy.fleet("verify", bundle, hosts, output=out, options=["--threads", "2"]).passed
    assert (good.times, bad.times) == (2, 3), "other options are another question"
    assert vitdeploy.fleet("verify", bundle, hosts, output=out, options=["--threads", "2"], force=True).passed
    assert (good.times, bad.times) == (3, 4)
    with pytest.raises(UsageError, match="has results of verify"):
        vitdeploy.fleet("benchmark", bundle, hosts, output=out)
    with pytest.raises(UsageError, match="has results of another bundle"):
        vitdeploy.fleet("verify", write_tiny_bundle(lab.folder / "other", 2).path, hosts, output=out)
    (out / "good.json").write_text("{}")
    with pytest.raises(UsageError, match="is not a result of a host"):
        vitdeploy.fleet("verify", bundle, hosts, output=out)


def test_an_interruption_keeps_what_was_there(lab: Lab, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.hosts.live import Live

    for name in ("first", "second"):
        lab.board(name)
    end = Live.end

    def interrupted(self: Live, outcome: Any) -> None:
        end(self, outcome)
        raise KeyboardInterrupt

    hosts, out = lab.hosts(), lab.folder / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Live, "end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vitdeploy.fleet("verify", bundle, hosts, output=out, parallel=1)
    assert [path.name for path in out.iterdir()] == ["first.json"]
    assert [one.kept for one in vitdeploy.fleet("verify", bundle, hosts, output=out).outcomes] == [True, False]
    assert lab.boards["first"].times == 1


def test_stale_engines_are_told_with_the_command_that_builds_them(lab: Lab, bundle: Path) -> None:
    for name, advice in (
        ("plain", "vitdeploy build tiny"),
        ("again", "vitdeploy build tiny --rebuild"),
        ("rtx", "vitdeploy build tiny --runtime tensorrt_rtx"),
        ("also", "vitdeploy build tiny"),
    ):
        lab.board(name).answers({**STALE, "try": advice}, 2)
    lab.board("good")
    hosts = lab.hosts()
    report = vitdeploy.fleet("benchmark", bundle, hosts, only=["plain", "again", "rtx", "also"])
    command = f"vitdeploy fleet build {bundle} --hosts {hosts} --only"
    assert set(fates(report).values()) == {"stale engine"}
    assert report.stale == (
        f"{command} plain,also",
        f"{command} again -- --rebuild",
        f"{command} rtx -- --runtime tensorrt_rtx",
    )
    assert [line.strip() for line in str(report).splitlines()[-3:]] == list(report.stale)
    assert fates(vitdeploy.fleet("build", bundle, hosts, only=["plain"])) == {"plain": "error"}
    assert lab.boards["good"].times == 0


def test_accuracy_on_a_device_is_compared_with_a_baseline_that_is_copied_too(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    board = lab.board("one")
    board.install_vitdeploy()
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
    np.savez(board.root / "photos.npz", images=images, labels=np.arange(40) % 4)
    half = write_tiny_bundle(tmp_path / "half", precision="fp16").path
    full = write_tiny_bundle(tmp_path / "full").path
    hosts = lab.hosts('data = "~/photos.npz"\nruntime = "onnxruntime"')
    before = (half / "manifest.json").read_bytes()
    report = vitdeploy.fleet("validate", half, hosts, baseline=full)
    (one,) = report.outcomes
    assert len(board.bundles) == 2
    assert one.result is not None, one
    assert len(one.result["runs"]) == 1
    assert one.result["runs"][0]["drop"] == 0, "the tiny bundles compute the same"
    assert "% top-1, drop 0.00" in str(report)
    (sent,) = (path for path in (board.root / ".cache/vitdeploy/fleet").iterdir() if path.name.startswith("half"))
    assert (sent / "manifest.json").read_bytes() == before, "it is not copied again the next time"
    with pytest.raises(UsageError, match="verify has no bundle to compare with"):
        vitdeploy.fleet("verify", half, hosts, baseline=full)


def test_a_benchmark_adds_to_the_table_of_devices(lab: Lab, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.schemas.forms import problems

    pytest.importorskip("onnxruntime")
    lab.board("one").install_vitdeploy()
    table = lab.folder / "table"
    brief = ("--", "--runtime", "onnxruntime", "--rounds", "1", "--warmup", "0")
    words = ("--hosts", lab.hosts(), "--device-table", table, *brief)
    document = told(capsys, "benchmark", bundle, *words, code=0)
    (path,) = table.iterdir()
    assert document["entries"] == [str(path)]
    entry = json.loads(path.read_text())
    assert problems("device", entry) == []
    assert entry["runs"][0]["runtime"] == "onnxruntime"
    assert "127.0.0.1" not in path.read_text()
    assert " ms, batch 1" in str(vitdeploy.fleet("benchmark", bundle, lab.hosts(), options=brief[1:]))
