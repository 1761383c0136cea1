"""Writing bundles: complete or not at all, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from pathlib import Path

import pytest

from tests.bundles import failing_after, fill, tiny_manifest, write_tiny_bundle
from vitdeploy.bundle import MANIFEST, MODEL, Bundle, BundleWriter
from vitdeploy.bundle.manifest import dump
from vitdeploy.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_leaving_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "deep" / "down" / "b") as writer:
        fill(writer)
        writer.seal(tiny_manifest())
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
@pytest.mark.parametrize("sealed", [False, True])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException], sealed: bool) -> None:
    def interrupted() -> None:
        with BundleWriter(tmp_path / "deep" / "b") as writer:
            fill(writer)
            if sealed:
                writer.seal(tiny_manifest())
            raise error

    with pytest.raises(error):
        interrupted()
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_sync_leaves_what_was_there(
    tmp_path: Path, force: bool, call: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b"
    if force:
        write_tiny_bundle(path, batch=1)
    monkeypatch.setattr(os, "fsync", failing_after(call, error))
    outcome: BaseException | None = None
    try:
        write_tiny_bundle(path, batch=2, force=force)
    except (BundleError, KeyboardInterrupt) as caught:
        outcome = caught
    monkeypatch.undo()
    if isinstance(outcome, BundleError):
        assert "the disk is full" in str(outcome)
    if path.exists():
        found = Bundle.open(path)
        found.check_files()
        assert found.manifest.inputs[0].shape[0] == (2 if outcome is None or call >= 4 else 1)
    assert left_behind(tmp_path) == (["b"] if force or path.exists() else [])
    assert path.exists() or call < 4


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_write_that_really_fails_is_explained(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(BundleError, match="the disk is full"):
            write_tiny_bundle(tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_behind(tmp_path) == []


def test_a_write_by_somebody_else_into_the_folder_is_explained_too(tmp_path: Path) -> None:
    def export() -> None:
        with BundleWriter(tmp_path / "b") as writer:
            (writer.path / "missing" / "model.xml").write_text("")

    with pytest.raises(BundleError, match="cannot write"):
        export()
    assert left_behind(tmp_path) == []


def test_an_error_that_has_nothing_to_do_with_the_bundle_stays_what_it_is(tmp_path: Path) -> None:
    def export() -> None:
        with BundleWriter(tmp_path / "b"):
            (tmp_path / "calibration.npz").read_bytes()

    with pytest.raises(FileNotFoundError):
        export()


def test_an_existing_bundle_needs_force(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"exists\n.*--force"):
        BundleWriter(bundle.path)
    replaced = write_tiny_bundle(bundle.path, batch=3, force=True)
    assert Bundle.open(bundle.path).manifest == replaced.manifest
    assert replaced.manifest.inputs[0].shape[0] == 3
    assert left_behind(bundle.path.parent) == ["tiny"]


def test_a_damaged_bundle_can_be_replaced_with_force(bundle: Bundle) -> None:
    document = json.loads((bundle.path / MANIFEST).read_text())
    (bundle.path / MANIFEST).write_bytes(dump({**document, "schema_version": 99}))
    (bundle.path / MODEL).unlink()
    write_tiny_bundle(bundle.path, force=True).check_files()


@pytest.mark.parametrize("manifest", [None, '{"name": "web app", "icons": []}', "not json"])
def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"precious")
    if manifest:
        (folder / MANIFEST).write_text(manifest)
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        BundleWriter(folder, force=True)
    assert (folder / "holiday.jpg").read_bytes() == b"precious"


def test_an_empty_folder_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(BundleError, match="--force"):
        BundleWriter(tmp_path / "b")
    write_tiny_bundle(tmp_path / "b", force=True).check_files()


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(BundleError, match="is a file"):
        BundleWriter(tmp_path / "b", force=force)
    assert (tmp_path / "b").read_text() == "mine"


def test_a_parent_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot write"), BundleWriter(tmp_path / "file" / "b"):
        pytest.fail("there is nothing to write in")
    assert left_behind(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write in")
def test_a_place_that_cannot_be_written_is_explained() -> None:
    with pytest.raises(BundleError, match=r"cannot write /proc/.*\n.*\n.*-o"), BundleWriter("/proc/bundles/b"):
        pytest.fail("there is nothing to write in")


def test_a_bundle_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with BundleWriter(path) as writer:
        fill(writer, 2)
        writer.seal(tiny_manifest(2))
        write_tiny_bundle(path, 1)
        with pytest.raises(BundleError, match="exists"):
            writer.commit()
    assert Bundle.open(path).manifest.inputs[0].shape[0] == 1
    assert left_behind(tmp_path) == ["b"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    bundle: Bundle, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    calls = []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises((BundleError, KeyboardInterrupt)):
        write_tiny_bundle(bundle.path, batch=2, force=True)
    assert len(calls) == 3
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    assert left_behind(bundle.path.parent) == ["tiny"]


def test_a_bundle_has_the_permissions_of_any_new_folder(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(bundle.path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_sealed_bundle_can_be_checked_and_completed_before_it_is_committed(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        fill(writer)
        sealed = writer.seal(tiny_manifest())
        sealed.check_files()
        sealed.update_results(parity=[{"passed": True}])
        assert not (tmp_path / "b").exists()
        committed = writer.commit()
    assert committed.path == tmp_path / "b"
    assert committed.manifest.parity == [{"passed": True}]


def test_files_in_folders_are_part_of_the_bundle(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        fill(writer)
        writer.write_bytes("extra/notes.txt", b"hello")
        writer.seal(tiny_manifest())
        committed = writer.commit()
    assert committed.read("extra/notes.txt") == b"hello"
