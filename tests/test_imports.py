"""What an import brings along, and what the package offers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitdeploy

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    *("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime", "openvino", "tensorrt", "polygraphy"),
    *("model_signing", "sigstore", "cryptography", "matplotlib", "asyncssh"),
)


def python(code: str) -> str:
    """What a fresh interpreter prints for `code`."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "vitdeploy",
        "vitdeploy.bundle",
        "vitdeploy.data",
        "vitdeploy.errors",
        "vitdeploy.hosts.fleet",
        "vitdeploy.preprocess",
        "vitdeploy.runtime.backends",
        "vitdeploy.runtime.session",
        "vitdeploy.accuracy.validate",
        "vitdeploy.platforms.check",
        "vitdeploy.platforms.report",
        "vitdeploy.proof.parity",
        "vitdeploy.reporting.report",
        "vitdeploy.runtime.verify",
        "vitdeploy.serving.handoff",
        "vitdeploy.signing.check",
        "vitdeploy.signing.sign",
    ],
)
def test_an_import_brings_no_framework_and_no_backend(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded == ""


def test_the_package_itself_does_not_even_bring_numpy() -> None:
    assert python("import sys, vitdeploy; print('numpy' in sys.modules, 'PIL' in sys.modules)") == "False False"


def test_the_device_side_never_imports_the_workshop() -> None:
    code = (
        "import sys, vitdeploy; vitdeploy.load; vitdeploy.build; vitdeploy.verify; vitdeploy.Session; vitdeploy.Bundle;"
        "print(*[name for name in sys.modules if name.startswith(('vitdeploy.models', 'vitdeploy.exporter'))])"
    )
    assert python(code) == ""


def test_loading_a_bundle_imports_onnx_and_the_backend_it_uses_and_no_other(tmp_path: Path) -> None:
    from tests.bundles import write_tiny_bundle

    pytest.importorskip("onnxruntime")
    bundle = write_tiny_bundle(tmp_path / "b")
    code = (
        f"import sys, vitdeploy; report = vitdeploy.verify({str(bundle.path)!r}, runtime='onnxruntime');"
        f"print(report.passed, *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert python(code) == "True onnx onnxruntime"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "auto"])
def test_classifying_an_image_imports_no_other_runtime_and_nothing_that_only_signs_or_exports(
    tmp_path: Path, runtime: str, suffix: str
) -> None:
    from PIL import Image

    from tests.bundles import write_tiny_bundle

    pytest.importorskip("onnxruntime")
    bundle, image = write_tiny_bundle(tmp_path / "b").path, tmp_path / f"image.{suffix}"
    Image.new("RGB", (8, 8)).save(image)
    unused = (
        *("numpy.ma", "tifffile", "jsonschema", "xml.etree.ElementTree", "PIL.DdsImagePlugin", "PIL.PdfParser"),
        *("vitdeploy.exporter", "vitdeploy.passes", "vitdeploy.models", "vitdeploy.data"),
    )
    code = (
        "import os, sys\n"
        f"os.environ['XDG_CACHE_HOME'] = {str(tmp_path / 'cache')!r}\n"
        "from vitdeploy.runtime.backends import auto_order\n"
        "for one in auto_order(): one.auto_rank = 1 if one.name == 'onnxruntime' else None\n"
        "from vitdeploy.cli import main\n"
        f"code = main(['predict', {str(bundle)!r}, {str(image)!r}, '--runtime', {runtime!r}, '--json'])\n"
        f"print(code, *[name for name in {(*HEAVY, *unused)!r} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "0 onnx onnxruntime"


def test_every_public_name_is_there() -> None:
    for name in vitdeploy.__all__:
        assert callable(getattr(vitdeploy, name)), name
    assert set(vitdeploy.__all__) <= set(dir(vitdeploy))
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        vitdeploy.exprot  # noqa: B018


def test_check_and_its_report_are_there_without_onnx(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnx_ir'] = None; import vitdeploy; vitdeploy.CheckReport\n"
        "try: vitdeploy.check('nowhere', 'tensorrt10')\n"
        "except vitdeploy.MissingDependencyError as error: print(error)"
    )
    assert python(code).splitlines() == [
        "onnx is not installed",
        "  why: vitdeploy check needs it",
        "  try: pip install 'vitdeploy[export]'",
    ]


@pytest.mark.parametrize("first", ["import vitdeploy", "import vitdeploy.exporter.api", "from vitdeploy import export"])
def test_a_public_function_is_that_whatever_was_imported_first(first: str) -> None:
    code = f"{first}; import inspect, vitdeploy; print(inspect.isfunction(vitdeploy.export), vitdeploy.export.__name__)"
    assert python(code) == "True export"


def test_no_subpackage_hides_a_public_name() -> None:
    folder = ROOT / "vitdeploy"
    assert not [name for name in vitdeploy.__all__ if (folder / name).is_dir() or (folder / f"{name}.py").exists()]


def test_the_version_is_the_projects() -> None:
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert stated[1] == vitdeploy.__version__
