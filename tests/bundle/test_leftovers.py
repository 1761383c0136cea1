"""What killed processes leave beside a bundle or a file is removed by the next one, and nothing of living ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from vitdeploy.bundle import Bundle, BundleWriter
from vitdeploy.cli import main
from vitdeploy.errors import BundleError
from vitdeploy.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs locks of files")

WAIT = "print('there', flush=True); sys.stdin.read()"
PARTIAL = """
import os, sys
from pathlib import Path
from tests.bundles import fill, tiny_manifest
from vitdeploy.bundle import BundleWriter
with BundleWriter(sys.argv[1], force=True) as writer:
    fill(writer)
    writer.seal(tiny_manifest(batch=2))
    {stop}
    writer.commit()
"""
# Between the two renames of a commit, the only moment at which nothing is at the destination.
BETWEEN = (
    "rename = Path.rename; Path.rename = lambda path, to: ({wait}) if '.partial-' in str(path) else rename(path, to)"
)
FILE = f"import os, sys; from vitdeploy.files import write_atomically; from pathlib import Path\n\
os.fsync = lambda _: ({WAIT.replace('; ', ', ')}); write_atomically(Path(sys.argv[1]), b'half')"


@contextmanager
def running(code: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has got to the point where it waits; it is killed at the end, with no chance to clean up."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(place)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process
    finally:
        process.kill()
        process.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_of_a_killed_export_is_removed_by_the_next_one(tmp_path: Path) -> None:
    for _ in range(2):
        with running(PARTIAL.format(stop=WAIT), tmp_path / "b"):
            pass
    assert len(names(tmp_path)) == 1  # the second one removed that of the first
    write_tiny_bundle(tmp_path / "other")
    assert len(names(tmp_path)) == 2  # that of another place is left alone
    write_tiny_bundle(tmp_path / "b")
    assert names(tmp_path) == ["b", "other"]


def test_the_folder_of_a_living_export_is_left_alone(tmp_path: Path) -> None:
    with running(PARTIAL.format(stop=WAIT), tmp_path / "b") as process:
        before = names(tmp_path)
        assert len(before) == 1
        write_tiny_bundle(tmp_path / "b", batch=1)
        assert names(tmp_path) == [*before, "b"]
        process.communicate()  # it goes on, and replaces the bundle
        assert process.returncode == 0
    assert names(tmp_path) == ["b"]
    assert Bundle.open(tmp_path / "b").manifest.inputs[0].shape[0] == 2


def test_a_bundle_whose_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", batch=1)
    stop = BETWEEN.format(wait=WAIT.replace("; ", ", "))
    with running(PARTIAL.format(stop=stop), tmp_path / "b"):
        assert not (tmp_path / "b").exists()
        with BundleWriter(tmp_path / "b"):
            assert not (tmp_path / "b").exists()  # the other one still may finish
    with BundleWriter(tmp_path / "b"):
        pass
    assert names(tmp_path) == ["b"]
    found = Bundle.open(tmp_path / "b")
    found.check_files()
    assert found.manifest.inputs[0].shape[0] == 1


def test_a_replaced_bundle_that_was_left_is_removed_where_the_new_one_is_there(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    write_tiny_bundle(tmp_path / ".b.replaced-0123abcd")
    write_tiny_bundle(tmp_path / "b", force=True)
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize(
    "name",
    [".b.partial-1", ".b.partial-0123abcg", ".b.partial-0123abcd.txt", "b.partial-0123abcd", ".c.partial-0123abcd"],
)
def test_nothing_of_another_name_is_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    write_tiny_bundle(tmp_path / "b")
    assert names(tmp_path) == sorted(["b", name])


def test_a_link_of_such_a_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    (tmp_path / ".b.partial-0123abcd").symlink_to(tmp_path / "precious")
    (tmp_path / ".x.0123abcd.partial").symlink_to(tmp_path / "precious/thesis.txt")
    write_tiny_bundle(tmp_path / "b")
    write_atomically(tmp_path / "x", b"whole")
    assert (tmp_path / "precious/thesis.txt").read_text() == "years of work"


def test_the_file_of_a_killed_process_is_removed_by_the_next_write_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".config.0123abcd").write_text("somebody's")
    with running(FILE, tmp_path / "x"):
        assert len(names(tmp_path)) == 2
        write_atomically(tmp_path / "y", b"whole")
        assert len(names(tmp_path)) == 3  # that of a living process is left alone
    write_atomically(tmp_path / "y", b"whole")
    assert names(tmp_path) == [".config.0123abcd", "y"]


def test_a_living_process_ends_its_file_whatever_others_write(tmp_path: Path) -> None:
    with running(FILE, tmp_path / "x") as process:
        write_atomically(tmp_path / "x", b"ours")
        process.communicate()
        assert process.returncode == 0
    assert (tmp_path / "x").read_bytes() == b"half"
    assert names(tmp_path) == ["x"]


def test_a_place_where_nothing_can_be_made_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    for place in ("/proc/vitdeploy", "/dev/full/b"):
        with pytest.raises(BundleError, match="cannot write"):
            write_tiny_bundle(Path(place))
    for folder in (Path("/proc"), tmp_path / "nowhere"):
        with pytest.raises(OSError, match="No such file"):
            write_atomically(folder / "x", b"")


def test_a_folder_that_is_swept_away_before_it_is_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, swept = Path.mkdir, []

    def made_and_swept(path: Path, **options: bool) -> None:
        mkdir(path, **options)
        if path.name.startswith(".b.partial-") and len(swept) < 2:
            swept.append(path)
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", made_and_swept)
    write_tiny_bundle(tmp_path / "b").check_files()
    assert len(swept) == 2
    assert names(tmp_path) == ["b"]


def test_a_place_inside_a_bundle_is_refused(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    before = names(tmp_path / "b")
    for inner in ("inner", "deep/inner", "../b/inner"):
        with pytest.raises(BundleError, match="is inside the bundle") as caught:
            BundleWriter(tmp_path / "b" / inner)
        assert caught.value.fix
    (tmp_path / "link").symlink_to(tmp_path / "b")
    with pytest.raises(BundleError, match="is inside the bundle"):
        BundleWriter(tmp_path / "link" / "inner")
    assert names(tmp_path / "b") == before


def test_links_to_nothing_are_refused_and_others_are_followed(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for place in ("dangling", "dangling/below", "circle", "circle/below"):
        with pytest.raises(BundleError, match=r"is a symbolic link to|cannot write") as caught:
            write_tiny_bundle(tmp_path / place)
        assert caught.value.fix
    assert names(tmp_path) == ["circle", "dangling"]
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write_tiny_bundle(tmp_path / "link", force=True)
    Bundle.open(tmp_path / "disk").check_files()
    assert (tmp_path / "link").is_symlink()


def test_the_command_line_refuses_both_before_anything_slow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "b")
    (tmp_path / "dangling").symlink_to("far")
    for place, told in (("b/inner", "is inside the bundle"), ("dangling", "is a symbolic link to far")):
        assert main(["export", "lemevit_tiny", "-o", place]) == 2
        err = capsys.readouterr().err
        assert told in err
        assert "building" not in err
    assert names(tmp_path) == ["b", "dangling"]
