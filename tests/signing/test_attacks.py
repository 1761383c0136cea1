"""What somebody can do to a bundle without the private key, and that none of it is opened with the public one."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bundles import append_to, forge, forge_file, tiny_model, write_tiny_bundle
from tests.conftest import examples
from vitdeploy.bundle import MANIFEST, MODEL, REFERENCE, SIGNATURE, Bundle
from vitdeploy.bundle import bundle as bundle_module
from vitdeploy.cli import main
from vitdeploy.errors import BundleError, GateError
from vitdeploy.signing import library
from vitdeploy.signing.check import open_signed
from vitdeploy.signing.contents import LARGEST_SIGNATURE, read_statement
from vitdeploy.signing.sign import sign

FILES = (MANIFEST, MODEL, REFERENCE)
Attack = Callable[[Path, Path], object]


def append(name: str) -> Attack:
    return lambda path, keys: append_to(path / name)


def remove(name: str) -> Attack:
    return lambda path, keys: (path / name).unlink()


def rename(name: str) -> Attack:
    return lambda path, keys: (path / name).rename(path / f"{name}.old")


def add(name: str) -> Attack:
    def attack(path: Path, keys: Path) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("not signed")

    return attack


def link(name: str) -> Attack:
    """The same contents, by way of a link that can be pointed elsewhere later."""

    def attack(path: Path, keys: Path) -> None:
        (path / name).rename(path.parent / name)
        (path / name).symlink_to(path.parent / name)

    return attack


def signature(edit: Callable[[dict[str, Any]], Any]) -> Attack:
    """The signature with its JSON edited."""

    def attack(path: Path, keys: Path) -> None:
        document = json.loads((path / SIGNATURE).read_text())
        edit(document)
        (path / SIGNATURE).write_text(json.dumps(document))

    return attack


def statement(edit: Callable[[dict[str, Any]], Any]) -> Attack:
    """The signature with what it says edited, and not signed again."""

    def rewrite(document: dict[str, Any]) -> None:
        envelope = document["dsseEnvelope"]
        payload = json.loads(base64.b64decode(envelope["payload"]))
        edit(payload)
        envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

    return signature(rewrite)


def written(data: bytes) -> Attack:
    return lambda path, keys: (path / SIGNATURE).write_bytes(data)


def file_less(path: Path, keys: Path) -> None:
    forge(Bundle.open(path), lambda document: document["files"].pop(REFERENCE))
    (path / REFERENCE).unlink()


def other_bundle_of_the_same_signer(path: Path, keys: Path) -> None:
    write_tiny_bundle(path.parent / "other", error=0.5)
    sign(path.parent / "other", key=keys / "ours.pem")
    shutil.copy(path.parent / "other" / SIGNATURE, path / SIGNATURE)


def other_files_under_the_signature(path: Path, keys: Path) -> None:
    write_tiny_bundle(path.parent / "other", error=0.5)
    for name in FILES:
        shutil.copy(path.parent / "other" / name, path / name)


def other_key_that_says_it_is_ours(path: Path, keys: Path) -> None:
    hint = json.loads((path / SIGNATURE).read_text())["verificationMaterial"]["publicKey"]["hint"]
    sign(path, key=keys / "theirs.pem", force=True)
    signature(lambda document: document["verificationMaterial"]["publicKey"].update(hint=hint))(path, keys)


def statement_under_a_second_name(path: Path, keys: Path) -> None:
    """What one reader of JSON takes from `dsseEnvelope` and another from `dsse_envelope`."""
    document = json.loads((path / SIGNATURE).read_text())
    good = document["dsseEnvelope"]
    forge_file(Bundle.open(path), MODEL, tiny_model(1))
    sign(path, key=keys / "theirs.pem", force=True)
    document |= {
        "dsse_envelope": good,
        "dsseEnvelope": json.loads((path / SIGNATURE).read_text())["dsseEnvelope"],
    }
    (path / SIGNATURE).write_text(json.dumps(document))


ATTACKS: dict[str, Attack] = {
    **{f"{name} changed": append(name) for name in FILES},
    **{f"{name} removed": remove(name) for name in FILES},
    **{f"{name} renamed": rename(name) for name in FILES},
    **{f"{name} behind a link": link(name) for name in FILES},
    **{
        f"{name} added": add(name)
        for name in ("model.xml", "notes.txt", ".hidden", ".git/config", ".gitattributes", "sub/model.sig", "a/b/c")
    },
    "a folder behind a link added": lambda path, keys: (path / "more").symlink_to(keys),
    "a pipe added": lambda path, keys: os.mkfifo(path / "pipe"),
    "a model with its hash in the manifest": lambda path, keys: forge_file(Bundle.open(path), MODEL, tiny_model(1)),
    "a manifest with its own hash": lambda path, keys: forge(
        Bundle.open(path), lambda document: document["labels"].reverse()
    ),
    "a file less, in the manifest too": file_less,
    "no signature": remove(SIGNATURE),
    "a signature behind a link": link(SIGNATURE),
    "a signature of another bundle": other_bundle_of_the_same_signer,
    "the files of another bundle": other_files_under_the_signature,
    "signed by another key": lambda path, keys: sign(path, key=keys / "theirs.pem", force=True),
    "signed by another key that names ours": other_key_that_says_it_is_ours,
    "two statements in one signature": statement_under_a_second_name,
    "a statement of fewer files": statement(lambda payload: payload["predicate"]["resources"].pop()),
    "a statement that ignores more": statement(
        lambda payload: payload["predicate"]["serialization"]["ignore_paths"].append(MODEL)
    ),
    "a signature without signatures": signature(lambda document: document["dsseEnvelope"].update(signatures=[])),
    "a signature of nothing": signature(lambda document: document["dsseEnvelope"]["signatures"][0].update(sig="")),
    "a signature that names no key": signature(lambda document: document["verificationMaterial"].clear()),
    "an empty signature": written(b""),
    "no text": written(b"\xff\xfe\0"),
    "JSON that is no object": written(b"[]"),
    "JSON without an end": written(b"[" * 100_000),
    "a huge signature": written(b" " * (LARGEST_SIGNATURE + 2)),
    "a folder instead": lambda path, keys: ((path / SIGNATURE).unlink(), (path / SIGNATURE).mkdir()),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_refused(attack: Attack, signed: Path, keys: Path) -> None:
    open_signed(signed, keys / "ours.pub")
    attack(signed, keys)
    with pytest.raises(GateError) as refusal:
        open_signed(signed, keys / "ours.pub")
    assert refusal.value.exit_code == 1
    assert refusal.value.why
    assert refusal.value.fix


@pytest.mark.parametrize("attack", [append(MODEL), append(MANIFEST), remove(SIGNATURE)])
def test_nothing_of_a_refused_bundle_is_parsed(
    attack: Attack, signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the manifest was parsed")

    attack(signed, keys)
    monkeypatch.setattr(bundle_module, "parse", parse)
    assert main(["verify", str(signed), "--key", str(keys / "ours.pub")]) == 1
    assert main(["predict", str(signed), "photo.jpg", "--key", str(keys / "ours.pub")]) == 1
    assert main(["build", str(signed), "--key", str(keys / "ours.pub")]) == 1
    assert "AssertionError" not in capsys.readouterr().err


def test_no_runtime_is_imported_for_a_refused_bundle(signed: Path, keys: Path) -> None:
    append(MODEL)(signed, keys)
    code = (
        "import sys, vitdeploy\n"
        f"try: vitdeploy.load({str(signed)!r}, key={str(keys / 'ours.pub')!r})\n"
        "except vitdeploy.GateError: print(*[n for n in ('onnx', 'onnxruntime', 'openvino') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("\n", "")


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_and_no_missing_end_is_accepted(data: st.DataObject, signed: Path, keys: Path) -> None:
    name = data.draw(st.sampled_from(FILES))
    before = (signed / name).read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    bit = data.draw(st.integers(0, 8))
    changed = before[:place] + (bytes([before[place] ^ 1 << bit]) + before[place + 1 :] if bit < 8 else b"")
    (signed / name).write_bytes(changed)
    try:
        with pytest.raises(GateError, match="not what was signed"):
            open_signed(signed, keys / "ours.pub")
    finally:
        (signed / name).write_bytes(before)


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_signature_never_vouches_for_other_files(data: st.DataObject, signed: Path, keys: Path) -> None:
    """A byte that says nothing may change; what is said may not, so it is tried on files that were exchanged."""
    before, model = (signed / SIGNATURE).read_bytes(), (signed / MODEL).read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    flipped = before[:place] + bytes([before[place] ^ 1 << data.draw(st.integers(0, 7))]) + before[place + 1 :]
    (signed / SIGNATURE).write_bytes(flipped)
    try:
        try:
            opened = open_signed(signed, keys / "ours.pub")
            assert opened.read(MODEL) == model
        except GateError:
            pass
        (signed / MODEL).write_bytes(model + b"\0")
        with pytest.raises(GateError):
            open_signed(signed, keys / "ours.pub")
    finally:
        (signed / SIGNATURE).write_bytes(before)
        (signed / MODEL).write_bytes(model)


def test_a_manifest_that_is_exchanged_after_the_check_is_not_opened(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Bundle.open

    def exchanged(path: Path, **options: Any) -> Bundle:
        forge(opening(path), lambda document: document["labels"].reverse())
        return opening(path, **options)

    monkeypatch.setattr(Bundle, "open", exchanged)
    with pytest.raises(BundleError, match="exchanged after it was checked"):
        open_signed(signed, keys / "ours.pub")


def test_a_model_that_is_exchanged_after_the_check_is_not_read(signed: Path, keys: Path) -> None:
    opened = open_signed(signed, keys / "ours.pub")
    forge_file(Bundle.open(signed), MODEL, tiny_model(1))
    with pytest.raises(BundleError, match="not the file that was exported"):
        opened.read(MODEL)


def test_files_that_a_signer_left_out_with_another_tool_are_refused(signed: Path, keys: Path) -> None:
    (signed / SIGNATURE).unlink()
    (signed / ".gitattributes").write_text("* -text\n")
    config = library.require("model_signing.signing", needed_for="a test").Config()
    config.use_elliptic_key_signer(private_key=keys / "ours.pem").sign(signed, signed.parent / "s")
    (signed.parent / "s").rename(signed / SIGNATURE)
    with pytest.raises(GateError, match=r"\.gitattributes is not signed"):
        open_signed(signed, keys / "ours.pub")
    (signed / ".gitattributes").unlink()
    assert open_signed(signed, keys / "ours.pub").signed_by


def test_the_package_is_given_nothing_but_what_was_read(signed: Path) -> None:
    """Else it might read the statement of one envelope, and this package that of another."""
    document = json.loads((signed / SIGNATURE).read_text())
    plain = read_statement(json.dumps(document).encode())
    document["dsse_envelope"] = document["messageSignature"] = document["dsseEnvelope"]
    document["verificationMaterial"]["certificate"] = {"rawBytes": ""}
    document["dsseEnvelope"]["payload_type"] = "another"
    assert read_statement(json.dumps(document).encode()) == plain


@pytest.mark.parametrize("name", [MODEL, "notes.txt"])
def test_a_link_is_named_as_one(name: str, signed: Path, keys: Path) -> None:
    (signed / name).unlink(missing_ok=True)
    (signed / name).symlink_to(keys / "ours.pub")
    with pytest.raises(GateError, match=rf"{name} is a symbolic link to .*ours\.pub, which no signature covers"):
        open_signed(signed, keys / "ours.pub")


def test_a_bundle_of_another_key_is_not_handed_off(signed: Path, keys: Path, tmp_path: Path) -> None:
    words = ["handoff", str(signed), "--to", "trtexec", "-o", str(tmp_path / "out"), "--key"]
    assert main([*words, str(keys / "theirs.pub")]) == 1
    assert not (tmp_path / "out").exists()
    assert main([*words, str(keys / "ours.pub")]) == 0
    assert (tmp_path / "out" / "trtexec-11.sh").exists()
