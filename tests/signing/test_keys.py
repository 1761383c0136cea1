"""Keys that sign and check, and what is said of a file that is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.bundles import write_tiny_bundle
from tests.signing.conftest import PASSWORD, write_keys
from vitdeploy.bundle import SIGNATURE
from vitdeploy.cli import main
from vitdeploy.errors import UsageError
from vitdeploy.signing.check import open_signed
from vitdeploy.signing.keys import NEW_PRIVATE, NEW_PUBLIC, PASSWORD_VARIABLE, public_fingerprint
from vitdeploy.signing.sign import sign


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny").path


@pytest.mark.parametrize("command", ["sign", "verify"])
@pytest.mark.parametrize(
    "fault", ["missing", "a folder", "empty", "text", "of no curve", "of RSA", "huge", "the other"]
)
def test_what_is_no_key_is_refused_with_what_to_do(
    fault: str, command: str, signed: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = command == "sign"
    key = bad_key(fault, tmp_path, keys, private=private)
    assert main([command, str(signed), "--key", str(key), *(["--force"] if private else [])]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert str(key) in lines[0]
    assert lines[-1].startswith("  try: ")
    assert open_signed(signed, keys / "ours.pub").signed_by


def bad_key(fault: str, folder: Path, keys: Path, *, private: bool) -> Path:
    path = folder / "key.pem"
    texts = {"empty": b"", "text": b"-----BEGIN NOTHING-----\n", "huge": b"-" * (1 << 20)}
    if fault == "a folder":
        path.mkdir()
    elif fault in texts:
        path.write_bytes(texts[fault])
    elif fault == "of no curve":
        write_keys(folder, "key", curve=ec.SECP256K1())
        return folder / ("key.pem" if private else "key.pub")
    elif fault == "of RSA":
        made = ["openssl", "genrsa", "-out", str(path), "2048"]
        subprocess.run(made, check=True, capture_output=True)
        if not private:
            public = ["openssl", "pkey", "-in", str(path), "-pubout", "-out", str(folder / "rsa.pub")]
            subprocess.run(public, check=True, capture_output=True)
            return folder / "rsa.pub"
    elif fault == "the other":
        return keys / ("ours.pub" if private else "ours.pem")
    return path


def test_a_certificate_is_told_from_a_key(signed: Path, keys: Path, tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-key", str(keys / "ours.pem"), "-subj", "/CN=us", "-out"]
    subprocess.run([*made, str(tmp_path / "us.crt")], check=True, capture_output=True)
    with pytest.raises(UsageError, match="is a certificate, not a key") as refusal:
        open_signed(signed, tmp_path / "us.crt")
    assert "openssl x509" in str(refusal.value.fix)


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_the_curves_of_the_format_are_taken(curve: str, unsigned: Path, tmp_path: Path) -> None:
    write_keys(tmp_path, "key", curve=getattr(ec, curve)())
    sign(unsigned, key=tmp_path / "key.pem")
    assert open_signed(unsigned, tmp_path / "key.pub").signed_by


def test_the_commands_that_the_errors_name_make_a_pair(
    unsigned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (NEW_PRIVATE, NEW_PUBLIC):
        subprocess.run(command.split(), check=True, capture_output=True)
    sign(unsigned, key="private.pem")
    assert open_signed(unsigned, "public.pem").signed_by


def test_the_password_of_a_key_comes_from_the_environment(
    unsigned: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sign", str(unsigned), "--key", str(keys / "locked.pem")]
    for password, message in ((None, "there is no password"), ("wrong", "does not open"), ("", "does not open")):
        monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
        if password is not None:
            monkeypatch.setenv(PASSWORD_VARIABLE, password)
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert PASSWORD_VARIABLE in error
        assert not (unsigned / SIGNATURE).exists()
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    assert main(command) == 0
    assert open_signed(unsigned, keys / "locked.pub").signed_by
    assert PASSWORD not in capsys.readouterr().out


def test_a_terminal_is_asked_for_the_password(unsigned: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return PASSWORD

    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.setattr("getpass.getpass", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["sign", str(unsigned), "--key", str(keys / "ours.pem")]) == 0
    assert asked == []
    assert main(["sign", str(unsigned), "--key", str(keys / "locked.pem"), "--force"]) == 0
    assert asked == [f"password of {keys / 'locked.pem'}: "]


def test_a_password_for_a_key_without_one_changes_nothing(unsigned: Path, keys: Path) -> None:
    report = sign(unsigned, key=keys / "ours.pem", password="of another key")
    assert report.key == public_fingerprint(keys / "ours.pub")
