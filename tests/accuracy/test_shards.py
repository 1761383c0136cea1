"""Shards of a check: the report of all is that of one process, and nothing else is merged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitdeploy
from tests.accuracy.accuracy_cases import labels_of, noisy, photos, prepare, write_folder, write_variant
from tests.bundles import LABELS
from tests.conftest import ROOT, examples
from tests.tasks.task_cases import scenes, write_data, write_segmenter
from vitdeploy.accuracy import blocks, compute, sharded
from vitdeploy.accuracy.shards import Shard, parse_shard
from vitdeploy.errors import UsageError
from vitdeploy.runtime.backends.onnxruntime import OnnxRuntimeBackend

pytest.importorskip("onnxruntime")

IMAGES = photos(101)
TARGETS = labels_of(IMAGES)
RUNTIME = {"runtime": "onnxruntime"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with bundles `fp32` and `int8` and with `data`; the user's cache is in it."""
    return prepare(tmp_path, monkeypatch, IMAGES)


def shard(text: str, *bundles: str, data: str = "data", **options: Any) -> vitdeploy.ShardReport:
    return vitdeploy.validate_shard(list(bundles or ("int8", "fp32")), data, text, "rows", **RUNTIME, **options)


def report(*bundles: str, data: str = "data", **options: Any) -> str:
    """The JSON of a whole check; of shards with `merge`."""
    made = vitdeploy.validate(list(bundles or ("int8", "fp32")), data, record=False, **RUNTIME, **options)
    return json.dumps(made.to_dict())


# The same report


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_the_report_of_all_shards_is_that_of_one_process_bit_for_bit(place: Path, count: int) -> None:
    options = {"samples": 90, "seed": 3}
    parts = [shard(f"{number}/{count}", **options) for number in reversed(range(count))]
    assert sum(part.images for part in parts) == 90
    assert max(part.images for part in parts) - min(part.images for part in parts) <= 16
    merged = report(merge="rows", max_drop=1, **options)
    assert merged == report(max_drop=1, **options)
    assert json.loads(merged)["runs"][0]["flipped"]


@pytest.mark.parametrize("task", ["classification", "features"])
def test_blocks_and_fixed_batches_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    write_variant(place / "five", noisy(2), batch=5)
    whole = report("five", "int8", "fp32", task=task)
    monkeypatch.setattr(sharded, "BLOCK_IMAGES", 40)
    for number in range(2):
        shard(f"{number}/2", "five", "int8", "fp32", task=task)
    assert len(list(Path("rows").rglob("block-*.npz"))) == 3
    assert report("five", "int8", "fp32", task=task, merge="rows") == whole


def test_masks_and_a_figure_of_ones_own_are_merged_too(place: Path) -> None:
    write_segmenter(place / "maps32")
    write_segmenter(place / "maps8", noise=0.8)
    write_data(place / "scenes", *scenes())
    for number in range(2):
        shard(f"{number}/2", "maps8", "maps32", data="scenes")
    assert report("maps8", "maps32", data="scenes", merge="rows") == report("maps8", "maps32", data="scenes")
    shutil.rmtree("rows")
    Path("figures.py").write_text("def mean(outputs, targets):\n    return outputs['logits'].mean(axis=1)\n")
    for number in range(3):
        shard(f"{number}/3", metric="figures.py:mean")
    assert report(metric="figures.py:mean", merge="rows") == report(metric="figures.py:mean")


def test_the_result_is_recorded_as_that_of_one_process_is(place: Path) -> None:
    for number in range(2):
        shard(f"{number}/2")
    vitdeploy.validate(["int8", "fp32"], "data", merge="rows", **RUNTIME)
    (merged,) = vitdeploy.Bundle.open("int8").manifest.accuracy
    vitdeploy.validate(["int8", "fp32"], "data", **RUNTIME)
    (whole,) = vitdeploy.Bundle.open("int8").manifest.accuracy
    assert {**merged, "date": ""} == {**whole, "date": ""}


# Going on


class Dying:
    """Ends the run of a shard at an image."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.images, original = 0, OnnxRuntimeBackend._run

        def run(backend: OnnxRuntimeBackend, native: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.images += len(next(iter(inputs.values())))
            if self.images > after:
                raise KeyboardInterrupt
            return original(backend, native, inputs)

        monkeypatch.setattr(OnnxRuntimeBackend, "_run", run)


def test_an_interrupted_shard_goes_on_at_its_block(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "BLOCK_IMAGES", 16)
    shard("1/2")
    with monkeypatch.context() as patch:
        Dying(patch, 80)
        with pytest.raises(KeyboardInterrupt):
            shard("0/2")
    there = len(list(Path("rows/shard-0-of-2").glob("block-*.npz")))
    assert 0 < there < 4
    part = shard("0/2")
    assert part.images - part.computed == 16 * there
    assert report(merge="rows") == report()
    assert not list(place.rglob("*.partial"))


def test_a_killed_shard_goes_on_and_another_one_lost_nothing(place: Path) -> None:
    script = """
import os, vitdeploy
from vitdeploy.accuracy import blocks, sharded
sharded.BLOCK_IMAGES = 16
write, left = blocks.write_atomically, iter(range(3))
def dying(path, content):
    if next(left, None) is None:
        path.with_name(f".{path.name}.0123abcd.partial").write_bytes(content[:50])
        os._exit(9)
    write(path, content)
blocks.write_atomically = dying
vitdeploy.validate_shard(["int8", "fp32"], "data", "0/2", "rows", runtime="onnxruntime")
"""
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == 9
    assert [path.name for path in Path("rows").iterdir()] == ["shard-0-of-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "BLOCK_IMAGES", 16)
        shard("1/2")
        part = shard("0/2")
        assert part.images - part.computed == 32
        assert report(merge="rows") == report()
    assert not list(place.rglob("*.partial"))


def test_a_damaged_block_is_computed_again(place: Path) -> None:
    for number in range(2):
        shard(f"{number}/2")
    block = Path("rows/shard-1-of-2/block-00000.npz")
    whole = block.read_bytes()
    for content in (b"", whole[:-30], whole[:200] + bytes(40) + whole[240:]):
        block.write_bytes(content)
        with pytest.raises(UsageError, match="lacks rows of the shard 1/2") as caught:
            report(merge="rows")
        assert "--shard 1/2 --logits rows" in str(caught.value)
        assert shard("1/2").computed > 0
        assert block.read_bytes() == whole


# What is not merged


def test_shards_that_are_missing_are_named(place: Path) -> None:
    with pytest.raises(UsageError, match="cannot read rows"):
        report(merge="rows")
    Path("rows").mkdir()
    with pytest.raises(UsageError, match="there are no shards in rows"):
        report(merge="rows")
    shard("1/4")
    with pytest.raises(UsageError, match="lacks rows of the shards 0/4, 2/4, 3/4"):
        report(merge="rows")
    shard("0/2")
    with pytest.raises(UsageError, match="shards of several checks\n  why: it has shards of 2 and of 4"):
        report(merge="rows")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"samples": 50}, "data images was 101 and is 50"),
        ({"task": "features"}, "task name was"),
        ({"threads": 1}, "options"),
        ({"data": "other"}, "data sha256 was"),
    ],
)
def test_rows_of_another_check_are_refused(place: Path, options: dict[str, Any], told: str) -> None:
    write_folder(place / "other", IMAGES, (TARGETS + 1) % len(LABELS))
    for number in range(2):
        shard(f"{number}/2")
    with pytest.raises(UsageError, match="the shard 0/2 in rows is of another check") as caught:
        report(merge="rows", **options)
    assert told in str(caught.value.why)
    with pytest.raises(UsageError, match="shard-0-of-2 belongs to another check") as caught:
        shard("0/2", **options)
    assert told in str(caught.value.why)


def test_shards_of_different_bundles_are_refused(place: Path) -> None:
    shard("0/2")
    shutil.rmtree("int8")
    write_variant(place / "int8", noisy(2), precision="int8")
    shard("1/2")
    with pytest.raises(UsageError, match="the shard 0/2 in rows is of another check") as caught:
        report(merge="rows")
    assert "bundles 0 files model.onnx was" in str(caught.value.why)


def test_shards_of_different_machines_are_refused(place: Path) -> None:
    for number in range(2):
        shard(f"{number}/2")
    path = Path("rows/shard-1-of-2") / blocks.CHECK
    document = json.loads(path.read_text())
    document["check"]["sources"][1]["machine"]["processor"] = "Another CPU"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="the shard 1/2 in rows is of another check") as caught:
        report(merge="rows")
    assert 'sources 1 machine processor was "Another CPU" and is ' in str(caught.value.why)


def test_an_image_that_changed_in_between_is_named(place: Path) -> None:
    for number in range(2):
        shard(f"{number}/2")
    first = sorted(Path("data").rglob("*.png"))[0]
    first.write_bytes(sorted(Path("data").rglob("*.png"))[1].read_bytes())
    with pytest.raises(UsageError, match=f"{first.name} is not what it was for the shard 0/2"):
        report(merge="rows")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"check": 1, "told": 2}', "{" * 9999])
def test_a_damaged_description_is_written_again(place: Path, text: str) -> None:
    shard("0/1")
    (Path("rows/shard-0-of-1") / blocks.CHECK).write_text(text)
    with pytest.raises(UsageError, match="lacks rows of the shard 0/1"):
        report(merge="rows")
    assert shard("0/1").computed == 0
    assert report(merge="rows") == report()


@pytest.mark.parametrize("key", ["ran", "skipped"])
def test_a_description_without_what_it_should_tell_is_an_error(place: Path, key: str) -> None:
    shard("0/1")
    path = Path("rows/shard-0-of-1") / blocks.CHECK
    document = json.loads(path.read_text())
    whole = dict(zip(("name", "facts", "bundle", "reference"), ("int8", {}, 0, False), strict=True))
    for value in (None, [5], [{"name": 5}], [whole], [{**whole, "bundle": 7}], [{**whole, "facts": None}]):
        document["told"][key] = value
        path.write_text(json.dumps(document))
        with pytest.raises(UsageError, match="the description in rows/shard-0-of-1 is damaged"):
            report(merge="rows")


def test_a_folder_that_cannot_be_written_is_an_error(place: Path) -> None:
    Path("rows").write_text("")
    with pytest.raises(UsageError, match="cannot keep the rows of shards in rows"):
        shard("0/2")


def test_options_that_do_not_fit_are_refused(place: Path) -> None:
    with pytest.raises(UsageError, match="logits and merge exclude each other"):
        report(merge="rows", logits="rows")


# Memory


def test_a_shard_holds_no_more_of_many_images_than_of_few(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "BLOCK_IMAGES", 16)
    monkeypatch.setattr(compute, "CHUNK_IMAGES", 16)
    peaks = []
    for count in (64, 512):
        np.savez("many.npz", images=np.resize(IMAGES, (count, *IMAGES.shape[1:])), labels=np.resize(TARGETS, count))
        shutil.rmtree("rows", ignore_errors=True)
        kept: list[int] = []
        write = blocks.Blocks.write

        def counting(
            self: blocks.Blocks, number: int, keys: Any, rows: Any, write: Any = write, kept: Any = kept
        ) -> None:
            kept.append(sum(array.nbytes for one in rows for array in one.values()))
            write(self, number, keys, rows)

        monkeypatch.setattr(blocks.Blocks, "write", counting)
        tracemalloc.start()
        shard("0/1", data="many.npz")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        monkeypatch.setattr(blocks.Blocks, "write", write)
        assert set(kept) == {2 * 16 * len(LABELS) * 4}
        assert len(kept) == count // 16
    images, named = (512 - 64) * IMAGES[0].nbytes, (512 - 64) * 400
    assert peaks[1] < peaks[0] + 3 * images + named, "the arrays of the .npz, and names; no rows"


def test_a_merge_keeps_the_rows_on_disk_and_leaves_no_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "BLOCK_IMAGES", 16)
    for number in range(2):
        shard(f"{number}/2")
    kept: list[Any] = []
    assemble = blocks.assemble
    monkeypatch.setattr(sharded, "assemble", lambda *given: kept.append(assemble(*given)) or kept[0])
    before = sorted(Path("rows").rglob("*"))
    assert report(merge="rows") == report()
    rows, keys = kept[0]
    assert [type(one["logits"].base) for one in rows] == [np.memmap, np.memmap]
    assert [len(key) for key in keys] == [64] * len(IMAGES)
    assert sorted(Path("rows").rglob("*")) == before


# Which shard


@given(images=st.integers(1, 200), unit=st.integers(1, 20), total=st.integers(1, 12))
@settings(max_examples=examples(100))
def test_every_image_is_in_one_shard_and_whole_batches_stay_together(images: int, unit: int, total: int) -> None:
    parts = [Shard(number, total).places(images, unit) for number in range(total)]
    assert sorted(place for part in parts for place in part) == list(range(images))
    for part in parts:
        whole = {place // unit for place in part}
        assert all(place in part for one in whole for place in range(one * unit, min(images, one * unit + unit)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= unit


TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "3"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("2/8", {}, (2, 8)),
        ("0/1", TORCHRUN, (0, 1)),
        ("auto", TORCHRUN, (2, 4)),
        ("auto/4", TORCHRUN, (2, 4)),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "6"}, (2, 4)),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_MIN": "2"}, (3, 4)),
        (
            "auto",
            {
                **ARRAY,
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "13",
                "SLURM_ARRAY_TASK_STEP": "4",
            },
            (1, 4),
        ),
        ("auto/8", KUBERNETES, (3, 8)),
    ],
)
def test_a_shard_is_given_or_found(text: str, environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert parse_shard(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "told"),
    [
        ("8/8", {}, "there is no shard 8 of 8"),
        ("0/0", {}, "there is no shard 0 of 0"),
        ("1", {}, "invalid shard '1'"),
        ("-1/8", {}, "invalid shard"),
        ("1/x", {}, "invalid shard"),
        ("1/2/3", {}, "invalid shard"),
        ("", {}, "invalid shard"),
        ("\u0663/8", {}, "invalid shard"),
        ("auto/", TORCHRUN, "invalid shard"),
        ("auto", {}, "the shard of this process is not known"),
        ("auto", KUBERNETES, "it is not known of how many shards"),
        ("auto/2", KUBERNETES, "there is no shard 3 of 2"),
        ("auto/8", TORCHRUN, "tells of 4 shards, and --shard of 8"),
        ("auto", {"RANK": "4", "WORLD_SIZE": "4"}, "there is no shard 4 of 4"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "4"}, "RANK is 'x'"),
        ("auto", {**TORCHRUN, **ARRAY, "SLURM_ARRAY_TASK_MIN": "2"}, "it is not certain which shard"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7"}, "not certain which shard"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "5"}, "SLURM_ARRAY_TASK_COUNT is None"),
    ],
)
def test_what_is_no_shard_is_an_error(text: str, environment: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        parse_shard(text, environment)
    assert caught.value.fix


def test_under_slurm_the_command_finds_its_shard(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitdeploy.cli import main

    words = ["validate", "int8", "fp32", "--data", "data", "--runtime", "onnxruntime", "--json"]
    for number in range(2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number + 1))
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
        assert main([*words, "--shard", "auto", "--logits", "rows"]) == 0
        assert json.loads(capsys.readouterr().out)["shard"] == number
    assert main([*words, "--merge", "rows", "--max-drop", "1", "--no-record"]) == 1
    merged = capsys.readouterr().out
    assert main([*words, "--max-drop", "1", "--no-record"]) == 1
    assert capsys.readouterr().out == merged


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--shard", "0/2"), "a shard needs a folder to write to"),
        (("--shard", "2/2", "--logits", "rows"), "there is no shard 2 of 2"),
        (("--shard", "0/2", "--merge", "rows"), "--shard and --merge exclude each other"),
        (("--shard", "0/2", "--logits", "rows", "--report", "r"), "a shard has no report"),
        (("--shard", "0/2", "--logits", "rows", "--junit", "r"), "a shard has no report"),
        (("--merge", "nowhere"), "cannot read nowhere"),
    ],
)
def test_wrong_words_are_an_error_and_leave_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    from vitdeploy.cli import main

    assert main(["validate", "int8", "fp32", "--data", "data", "--runtime", "onnxruntime", *words]) == 2
    assert told in capsys.readouterr().err
    assert not Path("rows").exists()
