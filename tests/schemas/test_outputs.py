"""What commands print with `--json` has the form of their schemas, and what is spoiled has not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.accuracy.accuracy_cases import labels_of, noisy, photos, write_folder, write_variant
from tests.bundles import write_tiny_bundle
from tests.conftest import examples
from tests.costs.networks import write_data as write_data_of_costs
from tests.costs.networks import write_network
from tests.divergence.conftest import Break
from tests.image_cases import noise
from tests.schemas.conftest import Told
from tests.schemas.forms import places, problems, spoil
from tests.tasks.task_cases import scenes, write_data, write_pyramid, write_segmenter
from tests.tensorrt.fake_tensorrt import World
from tests.tensorrt.int8 import write_int8_bundle
from tests.tensorrt.rtx.conftest import Play, recorded
from tests.transformer import damaged_weight, transformer, write_bundle
from vitdeploy.bundle import MANIFEST
from vitdeploy.schemas import names

if TYPE_CHECKING:
    from tests.hosts.boards import Lab

pytest.importorskip("onnxruntime")

FAST = ("--runtime", "onnxruntime", "--rounds", "2", "--warmup", "0")
HERE = ("--runtime", "onnxruntime")


def holds(name: str, document: Any) -> int:
    """How many ways there are to spoil a document, which is valid, and of which samples are not once it is spoiled."""
    assert problems(name, document) == []
    known = [place for place in places(name, document) if spoil(document, place, lambda found: found[0])]

    @settings(max_examples=examples(50))
    @given(st.data())
    def spoiled_ones_do_not_validate(data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(known))
        spoiled = spoil(document, place, lambda found: data.draw(st.sampled_from(found)))
        assert spoiled is not None
        assert problems(name, spoiled.document) != [], spoiled.what

    spoiled_ones_do_not_validate()
    return len(known)


@pytest.mark.parametrize(
    "words",
    [["models"], ["models", "lemevit_*"], ["targets"], ["doctor"], ["cache"], ["cache", "--cache", "."], ["schema"]],
    ids=" ".join,
)
def test_what_is_told_of_the_installation(words: list[str], told: Told) -> None:
    assert holds(words[0], told(*words)) > 5


def test_what_was_cleared(told: Told, tmp_path: Path) -> None:
    (tmp_path / "cache" / "vitdeploy" / "latency").mkdir(parents=True)
    (tmp_path / "cache" / "vitdeploy" / "latency" / f"{'0' * 32}.json").write_text("{}")
    document = told("cache", "--clear")
    assert [row["cleared"]["entries"] for row in document["caches"] if row["name"] == "latency"] == [1]
    assert holds("cache", document) > 20


@pytest.mark.parametrize("name", names())
def test_each_schema_has_the_form_that_the_schema_of_schemas_states(name: str, told: Told) -> None:
    document = told("schema", name)
    assert document["$id"].split(":")[-2] == name
    assert problems("schema", document) == []


def test_the_contents_of_one_bundle_and_of_two(told: Told, bundle: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", 2, precision="fp16").path
    assert holds("inspect", told("inspect", bundle)) > 50
    both = told("inspect", bundle, other)
    assert both["differences"]
    assert holds("inspect", both) > 100


def test_a_bundle_that_holds_and_one_that_does_not(told: Told, bundle: Path, tmp_path: Path) -> None:
    assert holds("verify", told("verify", bundle)) > 20
    other = write_tiny_bundle(tmp_path / "other", error=1.0).path
    document = told("verify", other, *HERE, code=1)
    assert document["parity"]["failures"]
    assert holds("verify", document) > 20


def test_a_bisection_that_finds_nothing_and_two_that_find_something(told: Told, broken: Break, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    (tmp_path / "model.onnx").write_bytes(transformer())
    right = told("bisect", "model.onnx", *HERE)
    assert right["divergence"] is None
    assert holds("bisect", right) > 10
    broken(damaged_weight, "head.weight")
    wrong = told("bisect", "model.onnx", *HERE, code=1)
    assert wrong["reproducer"] is None
    assert holds("bisect", wrong) > 20
    assert holds("bisect", told("bisect", "model.onnx", *HERE, "-o", "out", code=1)) > 30


def test_predictions(told: Told, bundle: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(noise(12, 10)).save(tmp_path / name)
    assert holds("predict", told("predict", bundle, "a.png", "b.png", *HERE)) > 20


def test_benchmarks_alone_side_by_side_and_against_an_earlier_one(told: Told, bundle: Path, tmp_path: Path) -> None:
    alone = told("benchmark", bundle, *FAST)
    assert holds("benchmark", alone) > 30
    (tmp_path / "before.json").write_text(json.dumps(alone))
    against = told("benchmark", bundle, *FAST, "--baseline", "before.json")
    assert against["candidates"][0]["ratio"]["paired"] is False
    assert holds("benchmark", against) > 30
    other = write_tiny_bundle(tmp_path / "other").path
    paired = told("benchmark", bundle, other, *FAST)
    assert paired["candidates"][1]["ratio"]["paired"] is True
    assert holds("benchmark", paired) > 40


@pytest.mark.parametrize("more", [(), ("--precision", "fp16", "--by", "block", "--runtime", "onnxruntime")], ids=str)
def test_what_layers_and_blocks_cost(more: tuple[str, ...], told: Told, tmp_path: Path) -> None:
    write_network(tmp_path / "net.onnx")
    write_data_of_costs(tmp_path / "data.npz", 40)
    few = ("--samples", "20", "--images", "20", *(more or ("--no-latency",)))
    document = told("sensitivity", "net.onnx", "--data", "data.npz", *few)
    assert document["parts"]
    assert holds("sensitivity", document) > 40


def test_what_is_best_here(told: Told, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    write_network(tmp_path / "net.onnx")
    write_data_of_costs(tmp_path / "data.npz", 40)
    few = ("--samples", "20", "--images", "20", "--trials", "2", "--threads", "1")
    document = told("optimize", "net.onnx", "--data", "data.npz", "--runtime", "onnxruntime", "-o", "front", *few)
    assert document["points"]
    assert holds("optimize", document) > 40


def test_accuracies_of_classes(told: Told, bundle: Path, tmp_path: Path) -> None:
    images = photos(60)
    write_folder(tmp_path / "data", images, labels_of(images))
    write_variant(tmp_path / "int8", noisy(), precision="int8")
    document = told("validate", "int8", "--baseline", bundle, "--data", "data", "--max-drop", "0", *HERE, code=1)
    assert document["runs"][0]["flipped"]
    assert holds("validate", document) > 50
    manifest = json.loads((tmp_path / "int8" / MANIFEST).read_text())
    assert manifest["accuracy"]
    assert holds("manifest", manifest) > 50
    assert holds("inspect", told("inspect", "int8")) > 50


def test_accuracies_of_maps_features_and_a_figure_of_ones_own(told: Told, tmp_path: Path) -> None:
    write_segmenter(tmp_path / "fp32")
    write_segmenter(tmp_path / "int8", noise=0.8)
    write_data(tmp_path / "data", *scenes())
    assert holds("validate", told("validate", "int8", "fp32", "--data", "data", *HERE)) > 50
    write_pyramid(tmp_path / "pyramid32")
    write_pyramid(tmp_path / "pyramid16", noise=0.3)
    features = told("validate", "pyramid16", "pyramid32", "--data", "data/images", "--task", "features", *HERE)
    assert features["task"] == "features"
    assert holds("validate", features) > 40
    (tmp_path / "figures.py").write_text("def mean(outputs, targets):\n    return outputs['logits'].mean()\n")
    metric = told("validate", "int8", "fp32", "--data", "data", "--metric", "figures.py:mean", *HERE)
    assert metric["task"] == "metric"
    assert holds("validate", metric) > 30


def test_the_rules_for_a_version_and_for_a_board(told: Told, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle").path
    assert holds("check", told("check", bundle, "--target", "tensorrt10")) > 100
    board = told("check", bundle, "--target", "jetson-agx-orin-jp5", code=1)
    assert board["findings"]
    assert board["dla"]["total"] > 0
    assert holds("check", board) > 100


def test_the_compiler_alone_and_beside_the_rules(told: Told, play: Play, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle").path
    play(log=recorded("transformer_fp32")["log"])
    alone = told("check", bundle, "--compile")
    assert alone["compiled"]["roofline"]["estimates"]
    assert holds("check", alone) > 100
    assert holds("check", told("check", bundle, "--compile", "--target", "tensorrt10")) > 200


def test_what_the_compiler_refuses_or_dies_of(told: Told, play: Play, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(transformer(half=False, batch=1))
    node = "blocks.0.0.attn/Softmax"
    play(parsed=False, errors=[{"node_name": node, "node_operator": "Softmax", "desc": "no", "code": "UNSUPPORTED"}])
    refused = told("check", "model.onnx", "--compile", code=1)
    assert refused["compiled"]["refused"]
    assert holds("check", refused) > 20
    play(crash_on=node)
    crashed = told("check", "model.onnx", "--compile", code=1)
    assert crashed["compiled"]["failure"]
    assert holds("check", crashed) > 20


def test_engines_that_hold_and_that_are_wrong(told: Told, world: World, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", half=True).path
    layer = {"Name": "_gemm_mha_v2", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Half"}], "Outputs": []}
    world.inspection = json.dumps({"Layers": [layer], "Bindings": []})
    kept = told("build", bundle)
    assert kept["fusion"]["layers"] == 1
    assert holds("build", kept) > 50
    assert told("build", bundle)["cached"]
    assert holds("verify", told("verify", bundle, "--runtime", "tensorrt")) > 20
    world.miscompile = damaged_weight("head.weight")
    wrong = told("build", write_bundle(tmp_path / "single").path, code=1)
    assert wrong["diverges"]["block"] == "head"
    assert any("skipped" in one for one in wrong["attempts"])
    assert holds("build", wrong) > 50


def test_an_engine_whose_int8_was_measured(
    told: Told, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: world.clock)
    world.cost = lambda model: len(model) / 1000
    document = told("build", write_int8_bundle(tmp_path / "bundle").path, "--int8-if-faster")
    assert document["int8"]["races"]
    assert holds("build", document) > 50


def test_a_signature(told: Told, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    from tests.signing.conftest import write_keys

    write_keys(tmp_path, "ours")
    assert holds("sign", told("sign", bundle, "--key", "ours.pem")) > 5
    document = told("verify", bundle, "--key", "ours.pub", *HERE)
    assert document["signed_by"]
    assert holds("verify", document) > 20


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_exports_and_their_manifests(precision: str, told: Told, model_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "photos.npz", images=np.random.default_rng(0).integers(0, 256, (16, 16, 24, 3), np.uint8))
    calibration = ["--calibration", "photos.npz", "--samples", "16"] if precision == "int8" else []
    words = ["--image-size", "16x24", "--precision", precision, *calibration, "-o", "out"]
    assert holds("export", told("export", f"{model_file}:build", *words)) > 40
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert holds("manifest", manifest) > 60
    assert holds("inspect", told("inspect", "out")) > 100


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["verify", "nowhere"], 2),
        (["verify"], 2),
        (["nonsense"], 2),
        (["models", "nothing_like_it"], 2),
        (["schema", "manifst"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_failure_is_one_object(words: list[str], code: int, told: Told) -> None:
    assert holds("error", told(*words, code=code)) == 5


@pytest.mark.parametrize("to", ["triton", "deepstream"])
def test_a_hand_off(to: str, told: Told, bundle: Path) -> None:
    assert holds("handoff", told("handoff", bundle, "--to", to, "-o", "out")) > 10


def test_a_page(told: Told, bundle: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    assert holds("report", told("report", bundle, "--seconds", "0.1", *HERE, "-o", "page.html")) > 10


def test_hosts_that_pass_fail_and_are_off(told: Told, lab: Lab, bundle: Path) -> None:
    lab.board("good")
    lab.board("bad").answers({"passed": False, "failures": ["it does not hold"]}, 1)
    hosts = lab.hosts(more='[hosts.off]\naddress = "127.0.0.1"\nport = 1')
    document = told("fleet", "verify", bundle, "--hosts", hosts, "-o", "kept", code=1)
    assert [one["status"] for one in document["hosts"]] == ["passed", "failed", "unreachable"]
    assert holds("fleet", document) > 40
    again = told("fleet", "verify", bundle, "--hosts", hosts, "-o", "kept", "--only", "good")
    assert again["hosts"][0]["kept"]
    assert holds("fleet", again) > 15
