"""What reaches a device, its shell and its keys, and what of its words reaches the terminal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vitdeploy
from tests.bundles import write_tiny_bundle

if TYPE_CHECKING:
    from tests.hosts.boards import Lab


def test_no_shell_reads_more_than_words(lab: Lab, tmp_path: Path) -> None:
    board = lab.board("one")
    hostile = "$(touch hacked); touch hacked #'\"` ${HOME}"
    bundle = write_tiny_bundle(tmp_path / hostile).path
    report = vitdeploy.fleet(
        "verify", bundle, lab.hosts("folder = \"a $(touch hacked) 'b'\""), options=[hostile, "--x=`touch hacked`"]
    )
    assert report.passed
    assert board.asked[-2:] == [hostile, "--x=`touch hacked`"]
    assert board.asked[1].startswith("./a $(touch hacked) 'b'/touch_hacked_touch_hacked_HOME-")
    assert not (board.root / "hacked").exists()


def test_what_a_device_says_does_not_reach_the_terminal_as_it_is(lab: Lab, bundle: Path) -> None:
    evil = {"error": "\x1b]0;owned\x07no\nsuch", "why": "\x1b[2J", "try": "\ud800", "exit_code": 2}
    lab.board("one").answers(evil, 2)
    lab.board("two").answers({"passed": True, "runtime": {"device": "\x1b[31m"}, "parity": {"outputs": [5]}})
    shown = str(vitdeploy.fleet("verify", bundle, lab.hosts()))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    shown.encode()


def test_an_answer_without_end_is_not_read_to_its_end(lab: Lab, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.hosts import device

    monkeypatch.setattr(device, "LONGEST", 1 << 20)
    lab.board("one").answers("x" * (3 << 20))
    (found,) = vitdeploy.fleet("verify", bundle, lab.hosts()).outcomes
    assert found.status == "no result"
    assert "1 MiB" in found.what


def test_what_a_login_prints_first_is_no_part_of_the_answer(lab: Lab, bundle: Path) -> None:
    lab.board("one").answers(f"Welcome to this board!\n{{}}\n{(lab.boards['one'].root / 'answer').read_text()}\n")
    assert vitdeploy.fleet("verify", bundle, lab.hosts()).passed


def test_the_configuration_of_ssh_counts_and_none_is_no_known_host(lab: Lab, bundle: Path) -> None:
    board = lab.board("one")
    hosts = lab.folder / "fleet.toml"
    hosts.write_text('[hosts.one]\naddress = "nickname"\n')
    named = f"Host nickname\n  HostName 127.0.0.1\n  Port {board.port}\n"
    config = lab.home / ".ssh/config"
    config.write_text(named)
    assert vitdeploy.fleet("verify", bundle, hosts).passed
    config.write_text(f"{named}  UserKnownHostsFile none\n")
    assert vitdeploy.fleet("verify", bundle, hosts).outcomes[0].status == "host key"
    assert board.times == 1


def test_a_key_of_another_kind_than_the_known_one_is_a_wrong_key(lab: Lab, bundle: Path) -> None:
    board = lab.board("one")
    lab.new_key(lab.folder / "rsa", "ssh-rsa")
    key = (lab.folder / "rsa.pub").read_text()
    (lab.home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{board.port} {key}")
    (found,) = vitdeploy.fleet("verify", bundle, lab.hosts()).outcomes
    assert found.status == "host key"
    assert "is not the one in known_hosts" in found.what
    assert board.times == 0


def test_the_words_on_the_device_are_those_of_the_file_and_the_command_line(lab: Lab, bundle: Path) -> None:
    board = lab.board("one")
    board.answers({"passed": True, "runs": [{"name": "tiny on ort", "top1": 93.5, "drop": 0.25}]})
    (board.root / "venv").mkdir()
    shutil.move(board.root / "bin/vitdeploy", board.root / "venv/vd")
    hosts = lab.hosts('vitdeploy = "~/venv/vd"\ndata = "~/photos"\nruntime = "ort"\nfolder = "/put/here"')
    report = vitdeploy.fleet("validate", bundle, hosts, options=["--max-drop", "1"])
    assert report.passed
    name = next((board.root / "put/here").iterdir()).name
    assert board.asked == [
        *("validate", f"/put/here/{name}", "--json", "--quiet", "--runtime", "ort", "--no-record"),
        *("--data", "./photos", "--max-drop", "1"),
    ]
    assert "93.50 % top-1, drop 0.25" in str(report)
