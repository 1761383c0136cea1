"""What others read, before them: Triton's server and client, and the models of KServe and Kubernetes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import vitdeploy
from tests.bundles import write_tiny_bundle
from tests.serving.cases import LABELS, write_linear
from tests.tasks.task_cases import write_network
from vitdeploy.bundle import Bundle
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.preprocess import preprocess_batch
from vitdeploy.serving.content import one_line

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
NETWORK = "lemevit_tiny.eurosat"
LARGEST = {"one": 1, "filled": 4}
EXPORTS: dict[str, dict[str, Any]] = {
    "half": {"precision": "fp16"},
    "native": {"target": "openvino", "batch": "dynamic"},
}


@pytest.fixture(scope="module")
def servers() -> Path:
    if "SERVERS" not in os.environ:
        pytest.skip("SERVERS does not name an environment that tests/serving/servers.sh made")
    return Path(os.environ["SERVERS"]).absolute()


def program(servers: Path, script: str, *words: object) -> str:
    """What a script beside this one prints in that environment."""
    command = [servers / "bin" / "python", HERE / script, *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Triton:
    """A server of several repositories, whose backends of ONNX Runtime and OpenVINO are the stand-in beside this."""

    def __init__(self, servers: Path, repositories: list[Path], folder: Path) -> None:
        self._servers, self._folder = servers, folder
        self.log = folder / "server.log"
        self.configurations = sorted(path for root in repositories for path in root.glob("*/config.pbtxt"))
        site = next((servers / "lib").glob("python*/site-packages"))
        backends = self._backends(site / "pytriton" / "tritonserver")
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            self._http, self._grpc = (one.getsockname()[1] for one in sockets)
        libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        command = [
            str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
            *(f"--model-repository={path}" for path in repositories),
            f"--backend-directory={backends}",
            *(f"--http-port={self._http}", "--http-address=127.0.0.1", f"--grpc-port={self._grpc}"),
            *("--grpc-address=127.0.0.1", "--allow-metrics=false", "--exit-on-error=false"),
        ]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
                cwd=servers / "packages",  # where the interpreter of a backend looks for modules; not at PYTHONPATH
            )

    def _backends(self, server: Path) -> Path:
        version = sysconfig.get_python_version()
        interpreters = sorted(server.glob(f"python_backend_*/{version}/triton_python_backend_*"))
        if not interpreters:
            pytest.skip(f"the server has no interpreter of Python {version}")
        folder = self._folder / "backends"
        # Copies, for the server follows no link out of the folder.
        shutil.copytree(server / "backends" / "python", folder / "python", ignore=shutil.ignore_patterns("__*"))
        shutil.copy(interpreters[0], folder / "python")
        for name in ("onnxruntime", "openvino"):
            shutil.copytree(HERE / "backend", folder / name)
        return folder

    def wait(self) -> None:
        """Until every model is ready, or has failed."""
        end = time.monotonic() + 120
        while "Started HTTPService" not in self.log.read_text():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def ask(self, model: str, inputs: dict[str, np.ndarray], classes: int | None = None) -> dict[str, np.ndarray]:
        """The outputs of a model, by gRPC and by HTTP."""
        source, target = self._folder / "inputs.npz", self._folder / "outputs.npz"
        np.savez(source, **inputs)
        addresses = (f"127.0.0.1:{self._grpc}", f"127.0.0.1:{self._http}")
        more = () if classes is None else (classes,)
        program(self._servers, "triton_client.py", *addresses, model, source, target, *more)
        with np.load(target) as file:
            return dict(file)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)


def write_numbers(path: Path, *, whole: str | None = None, **options: Any) -> Bundle:
    """Images and integers in; out come a number for each sample, and integers; with `whole` one for all samples."""
    rng = np.random.default_rng(0)
    inputs = {
        "images": rng.normal(size=(6, 3, 16, 16)).astype(np.float32),
        "ids": rng.integers(-9, 9, (6, 4)),
        "gain": rng.normal(size=6).astype(np.float32),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Squeeze", ["mean", "axes"], ["channels"]),
        helper.make_node("MatMul", ["channels", "weight"], ["plain"]),
        helper.make_node("Mul", ["plain", "gain"], ["score"]),
        helper.make_node("Add", ["ids", "ids"], ["doubled"]),
    ]
    if whole is not None:
        nodes.append(helper.make_node("ReduceSum", ["score"], [whole], keepdims=0))
    weights = {"weight": np.array([1, -2, 3], np.float32), "axes": np.array([2, 3])}
    outputs = {"score": ("float32",), "doubled": ("int64", 4)}
    return write_network(path, nodes, outputs, weights, inputs=inputs, whole=whole, labels=(), **options)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    exported = {name: vitdeploy.export(NETWORK, folder / name, **options) for name, options in EXPORTS.items()}
    return {
        "free": write_linear(folder / "free"),
        "one": write_linear(folder / "one"),
        "fixed": write_linear(folder / "fixed", batch=2),
        "pixels": write_linear(folder / "pixels", baked=True),
        "nameless": write_linear(folder / "nameless", labels=()),
        "Name.of-a_model2": write_linear(folder / "odd", output="logits/of:it"),
        "pyramid": write_tiny_bundle(folder / "pyramid", pyramid=True),
        "numbers": write_numbers(folder / "numbers"),
        "numbers-3": write_numbers(folder / "numbers-3", batch=3),
        "whole": write_numbers(folder / "whole", whole="sum"),
        **exported,
        "filled": exported["native"],
    }


@pytest.fixture(scope="module")
def triton(servers: Path, bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("triton")
    repositories = [folder / f"repository-{index}" for index in range(len(bundles) + 1)]
    for (name, bundle), repository in zip(bundles.items(), repositories, strict=False):
        vitdeploy.handoff(bundle, repository, to="triton", name=name, max_batch=LARGEST.get(name))
    engine = folder / "engine"
    engine.write_bytes(b"ftrt engine")
    vitdeploy.handoff(bundles["free"], repositories[-1], to="triton", name="plan", engine=engine)
    server = Triton(servers, repositories, folder)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize(
    "name",
    [
        *("free", "one", "fixed", "pixels", "nameless", "Name.of-a_model2", "pyramid"),
        *("numbers", "numbers-3", "whole"),
    ],
)
def test_triton_answers_with_the_outputs_of_the_reference(
    name: str, triton: Triton, bundles: dict[str, Bundle]
) -> None:
    reference = bundles[name].reference()
    rows = {"one": 1, "fixed": 2, "numbers-3": 3}.get(name, len(next(iter(reference.inputs.values()))))
    given = {key: value[:rows] for key, value in reference.inputs.items()}
    if name == "numbers":
        given["gain"] = given["gain"][:, None]
    found = triton.ask(name, given)
    assert found.keys() == reference.outputs.keys()
    for key, value in reference.outputs.items():
        expected = value[:rows] if value.ndim else value[None]
        if name == "numbers" and value.ndim == 1:  # the server puts requests together, and knows no scalars
            expected = expected[:, None]
        assert found[key].shape == expected.shape
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-5 * np.abs(value).max())


# The backend of OpenVINO cannot be told to compute in FP32, which the page beside its files says.
BY_DEFAULT = "bf16" if read_cpu().bf16 else "fp32"


@pytest.mark.parametrize(
    ("name", "runtime", "precision"),
    [("half", "onnxruntime", None), ("native", "openvino", BY_DEFAULT), ("filled", "openvino", BY_DEFAULT)],
)
def test_triton_answers_for_a_photograph_as_a_session_does(
    name: str, runtime: str, precision: str | None, triton: Triton, bundles: dict[str, Bundle]
) -> None:
    pytest.importorskip(runtime)
    bundle = bundles[name]
    assert bundle.manifest.preprocessing is not None
    images = preprocess_batch([HERE.parents[1] / "examples" / "water.png"], bundle.manifest.preprocessing)
    with vitdeploy.load(bundle, runtime=runtime, compute_precision=precision) as session:
        expected = session.run(images)["logits"]
    found = triton.ask(name, {"images": images})["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    (best,) = triton.ask(name, {"images": images}, classes=1)["logits"].ravel()
    assert best.decode().split(":")[1:] == [str(expected.argmax()), bundle.manifest.labels[expected.argmax()]]


def test_the_client_of_triton_parses_every_configuration(
    triton: Triton, servers: Path, bundles: dict[str, Bundle]
) -> None:
    """By `model_config_pb2` and `text_format`; and the record that other tests read is what the client says."""
    found = dict(line.split() for line in program(servers, "triton_config.py", *triton.configurations).splitlines())
    assert found.keys() == {*bundles, "plan"}
    assert {name: found[name] for name in ("free", "one", "fixed", "native", "filled")} == {
        **{"free": "32", "one": "1", "fixed": "0"},
        **{"native": "0", "filled": "4"},
    }


def test_triton_names_the_classes(triton: Triton, bundles: dict[str, Bundle]) -> None:
    reference = bundles["free"].reference()
    found = triton.ask("free", dict(reference.inputs), classes=len(LABELS))["logits"]
    expected = np.argsort(-reference.outputs["logits"], axis=1)
    for texts, order in zip(found, expected, strict=True):
        told = [text.decode().split(":", 2)[1:] for text in texts]
        assert told == [[str(index), one_line(LABELS[index])] for index in order]


def test_triton_loads_every_configuration_and_says_nothing_against_it(
    triton: Triton, bundles: dict[str, Bundle]
) -> None:
    log = triton.log.read_text()
    for name in bundles:
        assert f"successfully loaded '{name}'" in log
    assert "unable to find backend library for backend 'tensorrt'" in log, "read as far as without a GPU"
    told = [line for line in log.splitlines() if line.startswith(("E", "W")) and not re.search("(?i)cuda", line)]
    assert all("'plan'" in line or "failed to load all models" in line for line in told), told


@pytest.mark.parametrize(("to", "kinds"), [("triton", 1), ("openvino-model-server", 2)])
def test_kserve_reads_the_documents_as_its_models(to: str, kinds: int, servers: Path, tmp_path: Path) -> None:
    vitdeploy.handoff(write_linear(tmp_path / "b"), tmp_path / "out", to=to, name="LeMe_ViT.x")
    found = program(servers, "kubernetes_models.py", tmp_path / "out" / "kserve.yaml").split()
    assert found == ["ServingRuntime", "InferenceService"][-kinds:]


def test_kubernetes_reads_the_job_of_the_page_as_its_model(servers: Path, tmp_path: Path) -> None:
    page = (HERE.parents[1] / "docs" / "many-images.md").read_text()
    (job,) = re.findall(r"```yaml\n(apiVersion: batch.*?)```", page, re.DOTALL)
    (tmp_path / "job.yaml").write_text(job)
    assert program(servers, "kubernetes_models.py", tmp_path / "job.yaml") == "Job"
