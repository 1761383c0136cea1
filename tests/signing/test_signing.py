"""Signing a bundle and checking who signed it, from the command line and from Python."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.bundles import append_to, failing_after, tiny_images, tiny_logits, write_tiny_bundle
from vitdeploy.bundle import MANIFEST, MODEL, REFERENCE, SIGNATURE, Bundle
from vitdeploy.cli import main
from vitdeploy.errors import BundleError, GateError, UsageError
from vitdeploy.signing.check import open_signed
from vitdeploy.signing.keys import public_fingerprint
from vitdeploy.signing.sign import sign


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny").path


# From the command line


def test_what_is_signed_is_verified_with_the_public_key(
    unsigned: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = public_fingerprint(keys / "ours.pub")
    assert main(["sign", str(unsigned), "--key", str(keys / "ours.pem")]) == 0
    assert capsys.readouterr().out == f"{unsigned}: 3 files signed in model.sig\nkey {fingerprint}\n"
    verify = ["verify", str(unsigned), "--runtime", "onnxruntime"]
    assert main([*verify, "--key", str(keys / "ours.pub")]) == 0
    assert f"\nsigned by the key {fingerprint}\n" in capsys.readouterr().out
    assert main(verify) == 0
    assert "\nsigned, which was not checked: --key PUBLIC.pem\n" in capsys.readouterr().out
    assert main([*verify, "--key", str(keys / "theirs.pub")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {unsigned} is signed by another key\n")


def test_json_says_who_signed(unsigned: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = public_fingerprint(keys / "ours.pub")
    verify = ["verify", str(unsigned), "--runtime", "onnxruntime", "--json"]
    found = []
    assert main(verify) == 0
    found.append(json.loads(capsys.readouterr().out))
    assert main(["sign", str(unsigned), "--key", str(keys / "ours.pem"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "bundle": str(unsigned),
        "signature": SIGNATURE,
        "key": fingerprint,
        "files": [MANIFEST, MODEL, REFERENCE],
        "unlisted": [],
    }
    for key in ([], ["--key", str(keys / "ours.pub")]):
        assert main([*verify, *key]) == 0
        found.append(json.loads(capsys.readouterr().out))
    expected = [(False, None), (True, None), (True, fingerprint)]
    assert [(one["signed"], one["signed_by"]) for one in found] == expected


def test_a_bundle_without_a_signature_is_refused_with_a_key_and_used_without(
    unsigned: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(unsigned), "--runtime", "onnxruntime"]) == 0
    assert "signed" not in capsys.readouterr().out
    assert main(["verify", str(unsigned), "--key", str(keys / "ours.pub")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: {unsigned} is not signed",
        "  why: it has no model.sig, and --key asks for one",
        f"  try: `vitdeploy sign {unsigned} --key PRIVATE.pem` where it was made and the private key is",
    ]


@pytest.mark.parametrize("state", ["no", "yes"])
def test_inspect_says_whether_a_bundle_is_signed(
    state: str, unsigned: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if state == "yes":
        sign(unsigned, key=keys / "ours.pem")
    assert vitdeploy.inspect(unsigned).to_dict()["signed"] is (state == "yes")
    assert main(["inspect", str(unsigned)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["signed"]]
    assert line.split()[1].rstrip(",") == state


# From Python


def test_load_takes_a_bundle_of_the_key_and_no_other(unsigned: Path, keys: Path) -> None:
    sign(unsigned, key=keys / "ours.pem")
    with vitdeploy.load(unsigned, runtime="onnxruntime", key=keys / "ours.pub") as session:
        assert session.bundle.signed_by == public_fingerprint(keys / "ours.pub")
        assert abs(session(tiny_images()) - tiny_logits(tiny_images())).max() < 1e-5
    for runtime in ("onnxruntime", "auto"):
        with pytest.raises(GateError, match="signed by another key"):
            vitdeploy.load(unsigned, runtime=runtime, key=keys / "theirs.pub")


def test_a_bundle_that_was_opened_before_is_opened_anew(unsigned: Path, keys: Path) -> None:
    sign(unsigned, key=keys / "ours.pem")
    opened = Bundle.open(unsigned)
    assert vitdeploy.verify(opened, runtime="onnxruntime", key=keys / "ours.pub").signed_by
    assert opened.signed_by is None
    append_to(unsigned / MODEL)
    with pytest.raises(GateError, match=r"model\.onnx changed"):
        vitdeploy.verify(opened, key=keys / "ours.pub")


def test_a_link_to_a_bundle_and_a_folder_that_cannot_be_written_are_verified(signed: Path, keys: Path) -> None:
    current = signed.parent / "current"
    current.symlink_to(signed.name)
    signed.chmod(0o555)
    try:
        assert open_signed(current, keys / "ours.pub").path == current
    finally:
        signed.chmod(0o755)


def test_a_renamed_bundle_keeps_its_signature(signed: Path, keys: Path) -> None:
    moved = signed.rename(signed.parent / "another name")
    assert open_signed(moved, keys / "ours.pub").signed_by


# What is signed


def test_every_file_of_the_folder_is_signed_and_what_is_not_of_the_export_is_said(unsigned: Path, keys: Path) -> None:
    (unsigned / "notes").mkdir()
    for name in ("notes/LICENSE", ".gitattributes"):
        (unsigned / name).write_text("mine")
    report = sign(unsigned, key=keys / "ours.pem")
    assert report.files == (".gitattributes", MANIFEST, MODEL, "notes/LICENSE", REFERENCE)
    assert report.unlisted == (".gitattributes", "notes/LICENSE")
    assert "among them, not of the export: .gitattributes, notes/LICENSE" in str(report)
    assert open_signed(unsigned, keys / "ours.pub").signed_by
    append_to(unsigned / "notes/LICENSE")
    with pytest.raises(GateError, match="notes/LICENSE changed since it was signed"):
        open_signed(unsigned, keys / "ours.pub")


def test_a_signature_is_replaced_only_with_force(signed: Path, keys: Path) -> None:
    before = (signed / SIGNATURE).read_bytes()
    with pytest.raises(UsageError, match="signed already"):
        sign(signed, key=keys / "theirs.pem")
    assert (signed / SIGNATURE).read_bytes() == before
    assert main(["sign", str(signed), "--key", str(keys / "theirs.pem"), "--force"]) == 0
    assert open_signed(signed, keys / "theirs.pub").signed_by
    assert sorted(path.name for path in signed.iterdir()) == [MANIFEST, MODEL, SIGNATURE, REFERENCE]


@pytest.mark.parametrize("name", [MODEL, REFERENCE, MANIFEST])
def test_a_damaged_bundle_is_not_signed(name: str, unsigned: Path, keys: Path) -> None:
    append_to(unsigned / name, b"}")
    with pytest.raises(BundleError):
        sign(unsigned, key=keys / "ours.pem")
    assert not (unsigned / SIGNATURE).exists()


def test_a_link_is_not_signed(unsigned: Path, keys: Path) -> None:
    (unsigned / "weights").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="weights cannot be signed"):
        sign(unsigned, key=keys / "ours.pem")
    assert not (unsigned / SIGNATURE).exists()


def test_a_bundle_that_changes_while_it_is_signed_is_not_signed(
    unsigned: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "check_files", lambda bundle: append_to(bundle.path / MODEL))
    with pytest.raises(BundleError, match="changed while it was signed"):
        sign(unsigned, key=keys / "ours.pem")
    assert not (unsigned / SIGNATURE).exists()


def test_a_full_disk_keeps_the_old_signature(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (signed / SIGNATURE).read_bytes()
    monkeypatch.setattr(os, "fsync", failing_after(0, OSError(errno.ENOSPC, "no space")))
    with pytest.raises(BundleError, match="disk is full"):
        sign(signed, key=keys / "ours.pem", force=True)
    assert (signed / SIGNATURE).read_bytes() == before
    assert sorted(path.name for path in signed.iterdir()) == [MANIFEST, MODEL, SIGNATURE, REFERENCE]


# A signed bundle stays as it is


def test_results_are_not_written_into_a_signed_bundle(
    signed: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Bundle.open(signed)
    opened.update_results(accuracy=[{"top1": 0.5}])
    assert opened.manifest.accuracy == []
    assert open_signed(signed, keys / "ours.pub").manifest.accuracy == []
    (record,) = caplog.records
    assert "is signed, so the results are not written into it" in record.getMessage()
    (signed / SIGNATURE).unlink()
    opened.update_results(accuracy=[{"top1": 0.5}])
    sign(opened, key=keys / "ours.pem")
    assert open_signed(signed, keys / "ours.pub").manifest.accuracy == [{"top1": 0.5}]


def test_validate_reports_on_a_signed_bundle_and_keeps_its_signature(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    baseline = write_tiny_bundle(tmp_path / "baseline").path
    half = write_tiny_bundle(tmp_path / "half", precision="fp16").path
    sign(half, key=keys / "ours.pem")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(12) % 4)
    command = ["validate", str(half), "--data", str(tmp_path / "data.npz"), "--runtime", "onnxruntime"]
    main([*command, "--baseline", str(baseline)])
    shown = capsys.readouterr()
    assert "12 of 12 images" in shown.out
    assert "is signed, so the results are not written into it" in shown.err
    assert open_signed(half, keys / "ours.pub").manifest.accuracy == []


# Other tools


def test_the_tool_of_openssf_verifies_what_is_signed_here(signed: Path, keys: Path) -> None:
    command = ["verify", "key", str(signed), "--signature", str(signed / SIGNATURE)]
    run = model_signing(*command, "--public_key", str(keys / "ours.pub"))
    assert run.returncode == 0, run.stderr
    append_to(signed / MODEL)
    assert model_signing(*command, "--public_key", str(keys / "ours.pub")).returncode == 1


def test_what_the_tool_of_openssf_signs_is_verified_here(unsigned: Path, keys: Path) -> None:
    command = ["sign", "key", str(unsigned), "--signature", str(unsigned / SIGNATURE)]
    run = model_signing(*command, "--private_key", str(keys / "ours.pem"))
    assert run.returncode == 0, run.stderr
    assert open_signed(unsigned, keys / "ours.pub").signed_by
    append_to(unsigned / MODEL)
    with pytest.raises(GateError, match=r"model\.onnx changed since it was signed"):
        open_signed(unsigned, keys / "ours.pub")


def model_signing(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Where it runs


def test_no_step_opens_a_connection(unsigned: Path, keys: Path) -> None:
    code = f"""
import sys

def guard(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.client")):
        raise RuntimeError(f"a connection: {{event}} {{arguments}}")

sys.addaudithook(guard)
import vitdeploy

vitdeploy.sign({str(unsigned)!r}, key={str(keys / "ours.pem")!r})
print(vitdeploy.verify({str(unsigned)!r}, key={str(keys / "ours.pub")!r}, runtime="onnxruntime").passed)
vitdeploy.load({str(unsigned)!r}, key={str(keys / "ours.pub")!r}, runtime="onnxruntime").close()
import socket
try:
    socket.create_connection(("192.0.2.1", 9), timeout=0.1)
except RuntimeError:
    print("guarded")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["True", "guarded"], run.stderr


@pytest.mark.parametrize("missing", ["model_signing", "cryptography", "OpenSSL"])
def test_without_the_extra_the_error_names_it(missing: str, signed: Path, keys: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom vitdeploy.cli import main; sys.exit(main(sys.argv[1:]))"
    for words in (["verify", "--key", str(keys / "ours.pub")], ["sign", "--force", "--key", str(keys / "ours.pem")]):
        command = [sys.executable, "-c", code, words[0], str(signed), *words[1:]]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert "is not installed" in run.stderr
        assert run.stderr.endswith("  try: pip install 'vitdeploy[sign]'\n")
