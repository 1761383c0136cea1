"""TensorRT for RTX as a runtime: built ahead on a CPU, proven where it is first loaded, refused where it is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import tiny_images, tiny_logits, tiny_manifest, write_tiny_bundle
from tests.tensorrt.rtx.conftest import Play
from tests.tensorrt.rtx.fake_runtime import ADA, KERNELS, RtxWorld, miscomputed
from vitdeploy import build
from vitdeploy.bundle import Bundle, BundleWriter
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, GateError, MissingDependencyError, UsageError
from vitdeploy.machine.gpus import Gpu
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify
from vitdeploy.tensorrt.rtx import requirements
from vitdeploy.tensorrt.rtx.requirements import DEFAULT_KINDS

NAME = "tensorrt_rtx"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "b")


def kept(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "cache" / "vitdeploy" / "engines").glob(f"*.{suffix}"))


def sidecar(tmp_path: Path) -> dict[str, Any]:
    (path,) = (one for one in kept(tmp_path, "json") if not one.name.endswith(".report.json"))
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def built_ahead(bundle: Bundle, world: RtxWorld, **options: Any) -> None:
    """An engine that was built where there is no GPU."""
    here, world.gpu = world.gpu, None
    report = build(bundle, runtime=NAME, **options)
    assert not report.passed
    assert not report.failed
    world.gpu = here


def told(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tmp_path / "site" / "told.json").read_text())
    return document


def test_what_was_built_without_a_gpu_is_proven_by_the_first_load_and_by_no_other(
    bundle: Bundle, world: RtxWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_ahead(bundle, world)
    assert sidecar(tmp_path)["references_sha256"] == []
    assert "proven_on" not in sidecar(tmp_path)
    with load(bundle, runtime=NAME) as session:
        described = session.describe()
        images = tiny_images(40)
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)
    assert (described["backend"], described["device"]) == (NAME, ADA.name)
    assert described["compute_precision"] == "types of the graph, strongly typed"
    (device,) = sidecar(tmp_path)["proven_on"]
    assert device.startswith("NVIDIA GeForce RTX 4070, compute capability 89, driver ")
    monkeypatch.setattr("vitdeploy.tensorrt.backend.prove", lambda *given: pytest.fail("it is proven already"))
    load(bundle, runtime=NAME).close()
    assert world.driver.leaks == 0


def test_another_gpu_and_another_reference_are_proven_anew(bundle: Bundle, world: RtxWorld, tmp_path: Path) -> None:
    built_ahead(bundle, world)
    load(bundle, runtime=NAME).close()
    world.gpu = Gpu("NVIDIA RTX A2000", 86)
    load(bundle, runtime=NAME).close()
    assert len(sidecar(tmp_path)["proven_on"]) == 2
    world.runs = miscomputed
    load(bundle, runtime=NAME).close()  # the proof is on record, and verify asks again
    assert not verify(bundle, runtime=NAME).passed
    with BundleWriter(tmp_path / "other") as writer:
        writer.write_bytes("model.onnx", bundle.read("model.onnx"))
        writer.write_reference(inputs={"images": tiny_images(3)}, outputs={"logits": tiny_logits(tiny_images(3))})
        writer.seal(tiny_manifest())
        second = writer.commit()
    with pytest.raises(GateError, match="gives other numbers on this GPU"):
        load(second, runtime=NAME)


def test_an_engine_with_other_numbers_is_refused_and_nothing_is_noted(
    bundle: Bundle, world: RtxWorld, tmp_path: Path
) -> None:
    built_ahead(bundle, world)
    world.runs = miscomputed
    for _ in range(2):
        with pytest.raises(GateError, match=r"built ahead and proven now(.|\n)*--rebuild") as caught:
            load(bundle, runtime=NAME)
    assert caught.value.exit_code == 1
    assert "proven_on" not in sidecar(tmp_path)
    assert world.driver.leaks == 0
    with load(bundle) as session:
        assert session.backend.name != NAME
        assert "gives other numbers on this GPU" in session.reason


def test_auto_takes_an_engine_that_holds(bundle: Bundle, world: RtxWorld) -> None:
    built_ahead(bundle, world)
    with load(bundle) as session:
        assert session.backend.name == NAME
        assert session.reason.startswith("there is an RTX GPU, and an engine that was built for it")


def test_where_there_is_a_gpu_a_build_proves_at_once(bundle: Bundle, world: RtxWorld, tmp_path: Path) -> None:
    report = build(bundle, runtime=NAME)
    assert report.passed
    assert report.to_dict()["device"] == ADA.name
    assert list(sidecar(tmp_path)["proven_on"].values()) == [[bundle.manifest.files["reference.npz"].sha256]]
    again = build(bundle, runtime=NAME)
    assert (again.passed, again.cached) == (True, True)


def test_a_build_that_is_wrong_on_the_gpu_here_is_not_kept(
    bundle: Bundle, world: RtxWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.runs = miscomputed
    assert main(["build", str(bundle.path), "--runtime", NAME, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is False
    assert document["failures"]
    assert kept(tmp_path, "engine") == []


def test_a_gpu_proves_what_was_built_ahead_without_building_again(
    bundle: Bundle, world: RtxWorld, tmp_path: Path
) -> None:
    built_ahead(bundle, world)
    (tmp_path / "site" / "told.json").unlink()
    report = build(bundle, runtime=NAME)
    assert (report.passed, report.cached) == (True, True)
    assert report.to_dict()["unproven"] is None
    assert not (tmp_path / "site" / "told.json").exists()


def test_the_command_says_that_nothing_was_proven(
    bundle: Bundle, world: RtxWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.gpu = None
    assert main(["build", str(bundle.path), "--runtime", NAME]) == 0
    text = capsys.readouterr().out
    assert "TensorRT for RTX 1.7.1.116 for compute capability 8.0, 8.6, 8.9, 12.0, 12.1" in text
    assert "BUILT, NOT PROVEN (there is no NVIDIA GPU" in text
    assert main(["build", str(bundle.path), "--runtime", NAME, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["passed"], document["device"], document["parity"]) == (None, None, None)
    assert document["cached"]


def test_kernels_that_the_device_compiled_are_kept_for_the_next_load(
    bundle: Bundle, world: RtxWorld, tmp_path: Path
) -> None:
    built_ahead(bundle, world)
    load(bundle, runtime=NAME).close()
    assert world.remembered == []
    (path,) = kept(tmp_path, "kernels")
    assert path.read_bytes() == KERNELS + ADA.name.encode()
    load(bundle, runtime=NAME).close()
    assert world.remembered == [path.read_bytes()]
    world.gpu = Gpu("NVIDIA RTX A2000", 86)
    load(bundle, runtime=NAME).close()
    assert len(kept(tmp_path, "kernels")) == 2
    built_ahead(bundle, world, rebuild=True)
    assert kept(tmp_path, "kernels") == [], "they belong to the engine that was replaced"


@pytest.mark.parametrize("num_requests", [1, 3])
def test_a_free_batch_is_cut_to_the_profile_that_was_asked_for(
    bundle: Bundle, world: RtxWorld, tmp_path: Path, num_requests: int
) -> None:
    built_ahead(bundle, world, profile="2,4,8", workspace="1G", tf32=True, sm="89,8.6")
    assert told(tmp_path) == {
        "flags": ["TF32"],
        "sm": [86, 89],
        "WORKSPACE": 2**30,
        "profile": {"images": [[2, 3, 8, 8], [4, 3, 8, 8], [8, 3, 8, 8]]},
    }
    with load(bundle, runtime=NAME, num_requests=num_requests) as session:
        images = tiny_images(19)
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)
        assert session.describe()["build_options"]["profile"] == [2, 4, 8]
    assert len(world.contexts) == num_requests
    load(bundle, runtime=NAME, build={"profile": "2,4,8", "workspace": "1G", "tf32": True}).close()
    with pytest.raises(BackendError, match="no proven TensorRT for RTX engine"):
        load(bundle, runtime=NAME, build={})


@pytest.mark.parametrize("recordable", [True, False])
def test_calls_are_replayed_where_the_library_says_that_they_can_be(
    bundle: Bundle, world: RtxWorld, recordable: bool
) -> None:
    built_ahead(bundle, world)
    world.refuses_recording = not recordable
    with load(bundle, runtime=NAME) as session:
        for _ in range(3):
            session(tiny_images(2))
        replay = session.describe()["cuda_graph"]
    assert replay == ("replayed" if recordable else "no: TensorRT for RTX says that this engine cannot be recorded")
    assert bool(world.driver.calls["cuStreamBeginCapture_v2"]) is recordable


def test_fp32_is_not_rounded_to_tf32_unless_it_was_asked_for(bundle: Bundle, world: RtxWorld, tmp_path: Path) -> None:
    built_ahead(bundle, world)
    assert told(tmp_path)["flags"] == []
    assert told(tmp_path)["sm"] == list(DEFAULT_KINDS)


def test_a_gpu_of_another_kind_has_no_engine(bundle: Bundle, world: RtxWorld) -> None:
    built_ahead(bundle, world, sm="86")
    with pytest.raises(BackendError, match=r"RTX 4070(.|\n)*vitdeploy build .* --runtime tensorrt_rtx"):
        load(bundle, runtime=NAME)
    built_ahead(bundle, world, sm="89")
    load(bundle, runtime=NAME).close()


def test_an_engine_that_the_library_refuses_is_said_in_its_words(bundle: Bundle, world: RtxWorld) -> None:
    built_ahead(bundle, world)
    world.refuses_engines = True
    with pytest.raises(BackendError, match=r"does not load any more\n.*plan file is not compatible(.|\n)*--rebuild"):
        load(bundle, runtime=NAME)
    assert world.driver.leaks == 0


@pytest.mark.parametrize(
    ("behaviour", "options", "words", "fix"),
    [
        (
            {"parsed": False, "errors": [{"node_name": "a", "node_operator": "Det", "desc": "no", "code": "X"}]},
            {},
            r"\(refused\)\n.*Det a: no",
            "check BUNDLE",
        ),
        ({"built": False, "log": [["ERROR", "the moon is in the way"]]}, {}, r"\(failed\)\n.*moon", "--compile"),
        ({"built": False, "log": [["ERROR", "no FP32 GEMM for Turing (SM75)"]]}, {}, r"\(failed\)", "--fp16"),
        ({"crash_on": "MatMul#2"}, {}, r"\(crashed\)\n.*SIGSEGV", "--compile"),
        ({"sleep": 60}, {"time_limit": 2.0}, r"\(timed out\)", "--time-limit"),
        ({"unusable": "GLIBC_2.28 not found"}, {}, "cannot be imported\n.*GLIBC", "force-reinstall"),
    ],
)
def test_a_builder_that_fails_is_an_error_and_leaves_no_engine(
    bundle: Bundle,
    world: RtxWorld,
    play: Play,
    tmp_path: Path,
    behaviour: dict[str, Any],
    options: dict[str, Any],
    words: str,
    fix: str,
) -> None:
    play(**behaviour)
    with pytest.raises(BackendError, match=words) as caught:
        build(bundle, runtime=NAME, **options)
    assert fix in str(caught.value.fix)
    assert kept(tmp_path, "engine") == []
    with pytest.raises(BackendError, match="no proven"):
        load(bundle, runtime=NAME)


def test_what_the_builder_said_is_kept(bundle: Bundle, world: RtxWorld, play: Play, tmp_path: Path) -> None:
    play(log=[["INFO", "the sun is shining"]])
    build(bundle, runtime=NAME, log_file=tmp_path / "said")
    assert "the sun is shining" in (tmp_path / "said").read_text()


@pytest.mark.parametrize(
    ("runtime", "options", "words"),
    [
        (NAME, {"dla": 0}, "with the option dla"),
        (NAME, {"timing_cache": "f"}, "with the option timing_cache"),
        (NAME, {"optimization_level": 5}, "with the option optimization_level"),
        (NAME, {"sm": "87"}, "Orin is 87"),
        (NAME, {"time_limit": 0.0}, "leaves no time"),
        ("tensorrt", {"sm": "86"}, "with the option sm"),
        ("tensorrt", {"time_limit": 5.0}, "with the option time_limit"),
        ("onnxruntime", {}, "no engine to build for the runtime onnxruntime"),
        ("tensorrt_rtz", {}, "no runtime called"),
    ],
)
def test_what_a_builder_cannot_follow_is_refused(
    bundle: Bundle, world: RtxWorld, runtime: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        build(bundle, runtime=runtime, **options)


def test_a_bundle_is_built_for_what_it_was_exported_for(tmp_path: Path, world: RtxWorld) -> None:
    from dataclasses import replace

    from tests.bundles import fill

    with BundleWriter(tmp_path / "b") as writer:
        fill(writer)
        writer.seal(replace(tiny_manifest(), target=NAME))
        bundle = writer.commit()
    assert build(bundle).to_dict()["runtime"] == NAME


# What is missing, and what brings it


def test_a_missing_package_has_its_pip_line(world: RtxWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(MissingDependencyError) as raised:
        find_backend(NAME).require()
    assert raised.value.fix == "pip install 'vitdeploy[nvidia]'"


@pytest.mark.parametrize(("system", "machine"), [("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")])
def test_other_machines_are_told_what_runs_there(
    world: RtxWorld, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    find_backend(NAME).require()  # what is installed is taken, wherever it is from
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(BackendError, match=r"no wheels of it for this machine(.|\n)*another runtime"):
        find_backend(NAME).require()


def test_without_a_gpu_or_with_one_that_it_does_not_serve_other_runtimes_are_named(world: RtxWorld) -> None:
    world.gpu = None
    assert "no NVIDIA GPU" in str(find_backend(NAME).available())
    world.gpu = Gpu("NVIDIA H100", 90)
    with pytest.raises(BackendError, match=r"does not serve NVIDIA H100\n.*90(.|\n)*--runtime tensorrt"):
        find_backend(NAME).require()


def test_bindings_that_do_not_load_are_an_error_in_words(world: RtxWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(requirements.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"cannot be imported\n.*libcudart"):
        find_backend(NAME).require()


def test_the_bindings_of_nvidias_archive_are_taken_where_the_wheels_are_missing(
    world: RtxWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["tensorrt_rtx_bindings"]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    assert requirements.bindings() == "tensorrt_rtx"
    assert requirements.import_bindings() is module
    find_backend(NAME).require()
