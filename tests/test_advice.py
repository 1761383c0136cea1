"""What messages tell a user to type can be typed: commands parse, and options exist where the message is printed."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import write_tiny_bundle
from vitdeploy.cli import COMMANDS, main, whole_parser
from vitdeploy.errors import VitDeployError

ROOT = Path(__file__).resolve().parent.parent / "vitdeploy"
NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]

BUNDLE = (
    *("check", "build", "sign", "verify", "validate", "bisect", "predict", "inspect", "benchmark", "sensitivity"),
    "handoff",
)
SOURCE = ("export", "sensitivity", "optimize")
LOADING = ("verify", "validate", "bisect", "predict", "benchmark")

# Which commands print the messages of a module; the longest beginning of its path counts.
PRINTED_BY: dict[str, tuple[str, ...]] = {
    "": tuple(NAMES),
    "accuracy/": ("validate",),
    "bundle/": ("export", *BUNDLE),
    "bundle/writer.py": ("export",),
    "costs/": ("sensitivity",),
    "data/": (*SOURCE, "validate", "predict"),
    "data/masks.py": ("validate",),
    "divergence/": ("bisect",),
    "exporter/": ("export",),
    "exporter/diagnosis/": ("export",),
    "graph/": ("export", *BUNDLE),
    "hosts/": ("fleet",),
    "latency/": ("benchmark",),
    "latency/baseline.py": ("benchmark",),
    "latency/device_table.py": ("benchmark", "fleet"),
    "models/": ("export", "models", *LOADING),
    "models/create.py": ("export",),
    "models/checkpoints.py": ("export",),  # with the runtime torch the hash of the weights is checked first
    "models/misfit.py": ("export",),
    "models/outputs.py": ("export",),
    "passes/": ("export",),
    "platforms/": ("check", "build"),
    "platforms/boards.py": ("check", "export"),
    "platforms/check.py": ("check",),
    "preprocess/": ("export", "validate", "predict"),
    "preprocess/recipe.py": ("export",),
    "proof/prove.py": ("verify",),
    "quantize/": ("export",),
    "runtime/": ("export", *BUNDLE),
    "runtime/options.py": LOADING,
    "runtime/race.py": ("export", "sensitivity"),
    "runtime/session.py": ("predict", "benchmark"),
    "runtime/auto.py": LOADING,
    "runtime/verify.py": ("verify",),
    "reporting/": ("report",),
    "schemas/": ("schema",),
    "search/": ("optimize",),
    "serving/": ("handoff",),
    "signing/": ("sign", "verify", "bisect", "predict", "build", "handoff"),
    "signing/check.py": ("verify", "bisect", "predict", "build", "handoff"),
    "signing/sign.py": ("sign",),
    "tasks/": ("validate",),
    "targets.py": ("export", "check", "build"),
    "tensorrt/": ("build", *LOADING),
    "tensorrt/build.py": ("build",),
    "tensorrt/error_patterns.py": ("build",),
    "tensorrt/timings.py": ("build",),
    "tensorrt/options.py": ("build",),
    "tensorrt/prove.py": ("build",),
    "tensorrt/rtx/compile.py": ("check",),
    "tensorrt/rtx/explain.py": ("check",),
    "tensorrt/rtx/model_file.py": ("check", "bisect"),
    "tensorrt/rtx/compiler.py": ("check", "build"),
    "tensorrt/rtx/requirements.py": ("check", "build"),
    "toml_reader.py": tuple(NAMES),
    "cli/__init__.py": tuple(name for name in NAMES if name not in ("completion", "help")),
    "cli/failure.py": tuple(NAMES),
    "cli/junit.py": ("benchmark", "validate", "verify"),
    "cli/output_file.py": ("benchmark", "fleet", "predict", "sensitivity"),
    **{f"cli/{name}.py": (name,) for name in NAMES},
    "cli/summary.py": ("export",),
}
# Modules whose words are typed on devices, with the commands that are called there.
ON_DEVICES = {"hosts/words.py": ("build", "verify", "benchmark", "validate")}
# Options of other programs, by the word before them.
_FOREIGN = re.compile(
    r"(?<![\w-])(pip install|cp|docker run|git lfs pull|hf download|openssl|gdal_translate|ls|python(VALUE)?|rm|sbatch|"
    r"tar -h|trtexec|openvino/model_server|build/classify|cmake|compgen|\(commandline|"
    r"ssh-(?:keygen|keyscan|copy-id|add)|ssh)\b"
    r"[^;,)`]*|-- --[a-z][^`]*|--system-site-packages|--runtime nvidia or --gpus all|-inf"
)
_PHRASE = re.compile(rf"`?\bvitdeploy ({'|'.join(NAMES)})\b(?P<rest>[^`\n]*)")
_END = re.compile(r"[;,:)]|\s>\s|\s(?:or|and)\s|\s\(|\.(?:\s|$)")
_OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z0-9-]*)")


def printed_by(name: str) -> tuple[str, ...]:
    """The commands that print the messages of a module."""
    return PRINTED_BY[max((key for key in PRINTED_BY if name.startswith(key)), key=len)]


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text of a module but its documentation, with a word in the place of each value."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            skipped.add(id(node.body[0].value))  # type: ignore[attr-defined]
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("add_argument", "add_argument_group"):
            skipped |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.keyword) and node.arg in ("needed_for", "option"):  # no advice, or part of one
            skipped |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELP":
            skipped.add(id(node.value))
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            skipped.add(id(node.format_spec))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(
                    str(part.value) if isinstance(part, ast.Constant) else in_place_of(part) for part in node.values
                ),
            )


def in_place_of(part: ast.expr) -> str:
    """A word for a value; for one that is a command of vitdeploy itself, that command."""
    value = ast.unparse(part.value if isinstance(part, ast.FormattedValue) else part)
    return "vitdeploy build BUNDLE" if re.fullmatch(r"command|.*\.command|.*build_command\b.*", value) else "VALUE"


def commands_in(text: str) -> list[str]:
    """The commands that a text tells to type; prose behind one is kept off by backticks around it."""
    found = []
    for match in _PHRASE.finditer(text):
        whole = match[0]
        if whole.startswith("`"):
            found.append(whole[1:])
        else:
            rest = match["rest"]
            end = _END.search(rest)
            found.append(whole[: len(whole) - len(rest)] + (rest[: end.start()] if end else rest))
    return found


def bare_options(text: str) -> list[str]:
    """The options that a text names for the command that prints it."""
    return _OPTION.findall(_FOREIGN.sub("", without_commands(text)))


def without_commands(text: str) -> str:
    """What a text says to the user of the command that prints it."""
    for phrase in commands_in(text):
        text = text.replace(phrase, "")
    return text


def named(text: str) -> set[str]:
    """The options of the commands that a text names as verbs: `export it again with --fp16`."""
    return set().union(*(OPTIONS[name] for name in NAMES if re.search(rf"\b{name}\b", text)))


def parses(phrase: str) -> bool:
    """Whether the command line takes it."""
    try:
        whole_parser().parse_args(shlex.split(phrase)[1:])
    except (VitDeployError, SystemExit):
        return False
    return True


def options_of(command: str) -> set[str]:
    """All that a command has."""
    (commands,) = [one for one in whole_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return set(commands.choices[command]._option_string_actions)


def on_devices(name: str) -> set[str]:
    """The options that a module passes on."""
    return set().union(*(OPTIONS[verb] for verb in ON_DEVICES.get(name, ())))


OPTIONS = {name: options_of(name) for name in NAMES}
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("name", SOURCES)
def test_every_command_in_a_text_can_be_typed(name: str) -> None:
    wrong = [(line, one) for line, text in texts(SOURCES[name]) for one in commands_in(text) if not parses(one)]
    assert not wrong, "\n".join(f"{name}:{line}: {one}" for line, one in wrong)


@pytest.mark.parametrize("name", SOURCES)
def test_every_option_in_a_text_exists_where_it_is_printed(name: str) -> None:
    known = set.union(*OPTIONS.values())
    wrong = [
        f"{name}:{line}: {option}, which {command} does not have: {text}"
        for line, text in texts(SOURCES[name])
        for option in bare_options(text)
        for command in printed_by(name)
        if (" " in text or option in known) and option not in OPTIONS[command] | named(text) | on_devices(name)
    ]
    assert not wrong, "\n".join(wrong)


ENGINES = ("tensorrt", "tensorrt_rtx")


@pytest.mark.parametrize("name", [name for name in SOURCES if "build" in printed_by(name)])
def test_no_text_of_build_names_a_runtime_that_builds_nothing(name: str) -> None:
    wrong = [
        f"{name}:{line}: {text}"
        for line, text in texts(SOURCES[name])
        for runtime in re.findall(r"--runtime (\w+)", without_commands(text))
        if runtime not in (*ENGINES, "R", "VALUE", "nvidia")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", SOURCES)
def test_every_path_in_a_command_is_quoted_for_the_shell(name: str) -> None:
    wrong = []
    for node in ast.walk(SOURCES[name]):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for part in node.values:
            value = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ""
            phrase = before[before.rfind("vitdeploy ") :] if "vitdeploy " in before else ""
            inside = re.match(rf"vitdeploy ({'|'.join(NAMES)})\b", phrase) and not _END.search(phrase)
            if inside and ("path" in value or "bundle" in value) and not value.startswith("shell("):
                wrong.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
            before += str(part.value) if isinstance(part, ast.Constant) else "VALUE"
    assert not wrong, "\n".join(wrong)


def test_the_rules_find_what_they_look_for() -> None:
    assert sum(len(commands_in(text)) for tree in SOURCES.values() for _, text in texts(tree)) > 40
    assert sum(len(bare_options(text)) for tree in SOURCES.values() for _, text in texts(tree)) > 100
    for text, commands, options in (
        ("vitdeploy doctor, or --device CPU", ["vitdeploy doctor"], ["--device"]),
        ("`vitdeploy build B --rebuild` on the device", ["vitdeploy build B --rebuild"], []),
        ("vitdeploy export M --batch 1 or --batch 2", ["vitdeploy export M --batch 1"], ["--batch"]),
        ("pip install --upgrade vitdeploy", [], []),
        ("leave --labels out", [], ["--labels"]),
        ("choose another folder with -o", [], ["-o"]),
    ):
        assert commands_in(text) == commands
        assert bare_options(text) == options
    assert parses("vitdeploy verify B --runtime onnxruntime")
    for wrong in ("vitdeploy export --fp16", "vitdeploy build on the device", "vitdeploy verify B --nonsense"):
        assert not parses(wrong)
    tree = ast.parse("'documentation'\ndef f(x):\n  'more'\n  raise E(f'no {x}', fix='vitdeploy verify')")
    assert sorted(text for _, text in texts(tree)) == ["no VALUE", "vitdeploy verify"]


# Command lines that fail, each with a different error; BUNDLE is one of FP32 with a fixed batch.
FAILING = (
    """
check nothing | check BUNDLE --target tensorrt9 | check BUNDLE --target tensorrt10 --sm 86
check nowhere --target tensorrt8
check model.onnx --target tensorrt10 | check BUNDLE --compile --sm 12
build BUNDLE | build BUNDLE --runtime onnxruntime | build BUNDLE --profile 1,8 | build BUNDLE --workspace much
build BUNDLE --dla -1 | build BUNDLE --workaround magic | build BUNDLE --max-builds 3 | build BUNDLE --int8-if-faster
build BUNDLE --runtime tensorrt_rtx --sm 1 | build nowhere | build BUNDLE --time-limit 0
handoff BUNDLE --to nothing -o out | handoff nowhere --to triton -o out | handoff empty --to cpp -o out
handoff BUNDLE --to triton -o images | handoff BUNDLE --to triton -o BUNDLE | handoff BUNDLE --to cpp -o model.onnx
handoff BUNDLE --to triton --engine nowhere -o out | handoff BUNDLE --to cpp --engine model.onnx -o out
handoff BUNDLE --to trtexec --max-batch 3 -o out | handoff BUNDLE --to trtexec --max-batch 0 -o out
handoff BUNDLE --to triton --name ../a -o out | handoff damaged --to triton -o out
handoff BUNDLE --to triton --key nowhere.pem -o out | handoff BUNDLE --to triton -o model.onnx/out
sign BUNDLE --key nowhere.pem | sign nowhere --key nowhere.pem
verify nowhere | verify model.onnx | verify empty | verify damaged | verify BUNDLE --runtime onxruntime
verify BUNDLE --runtime onnxruntime --threads 0 | verify BUNDLE --runtime onnxruntime --cache here
verify BUNDLE --runtime onnxruntime --compute-precision fp8 | verify BUNDLE --runtime onnxruntime --device TPU
verify BUNDLE --runtime tensorrt | verify BUNDLE --runtime tensorrt_rtx | verify BUNDLE --runtime torch
verify BUNDLE --key nowhere.pem | verify BUNDLE --runtime onnxruntime --checkpoint weights.pth
validate BUNDLE --data nowhere | validate BUNDLE --data empty | validate nowhere --data empty
validate BUNDLE --data text.png
validate BUNDLE --data images --task detection | validate BUNDLE --data images --task classification
validate BUNDLE --data images --task segmentation | validate BUNDLE --data images --task features --output scores
validate BUNDLE --data images --task features --runtime onnxruntime --baseline nowhere
validate BUNDLE --data images --task features --runtime onnxruntime --max-drop -1
validate BUNDLE --data images --metric f
predict BUNDLE nowhere.png --runtime onnxruntime | predict BUNDLE text.png --runtime onnxruntime
predict BUNDLE images/a.png --runtime onnxruntime --top-k 0 | predict nowhere images/a.png
predict BUNDLE images/a.png --runtime tensorrt | predict BUNDLE images/a.png --runtime torch
inspect nowhere | inspect empty | inspect model.onnx | inspect damaged
benchmark nowhere | benchmark BUNDLE --runtime onnxruntime --batch 3 | benchmark BUNDLE --runtime nonsense
benchmark BUNDLE --runtime onnxruntime --seconds 0 | benchmark BUNDLE --runtime onnxruntime --rounds 0
benchmark BUNDLE --runtime onnxruntime --baseline nowhere.json | benchmark BUNDLE --csv nowhere/x.csv
benchmark BUNDLE --runtime onnxruntime --max-slowdown 2 | benchmark BUNDLE --max-slowdown 0.5
benchmark BUNDLE --junit nowhere/x.xml | verify BUNDLE --junit nowhere/x.xml
validate BUNDLE --data images --junit nowhere/x.xml | validate BUNDLE --data images --task features --merge nowhere
validate BUNDLE --data nowhere.tar | validate BUNDLE --data text.tar | validate BUNDLE --data nowhere.tar.gz
validate BUNDLE --data x-{0..1}.tar | validate BUNDLE --data x-{1..0}.tar | validate BUNDLE --data none://x/y.tar
validate BUNDLE --data memory://x/y.tar | validate BUNDLE --data memory://x/y | validate BUNDLE --data nowhere.parquet
validate BUNDLE --data images --shard 0/2 | validate BUNDLE --data images --shard 2/2 --logits rows
validate BUNDLE --data images --shard auto --logits rows | validate BUNDLE --data images --shard 0/2 --merge rows
validate BUNDLE --data images --shard 0/2 --logits rows --report r
benchmark BUNDLE --runtime tensorrt --rounds 1 | benchmark BUNDLE --runtime onnxruntime --warmup -1
sensitivity BUNDLE --data nowhere | sensitivity BUNDLE --data empty | sensitivity empty --data images
sensitivity BUNDLE --data images --precision int4 | sensitivity BUNDLE --data images --by node
sensitivity BUNDLE --data images --sort size | sensitivity BUNDLE --data images --runtime tensorrt
sensitivity BUNDLE --data images --image-size 8 | sensitivity BUNDLE --data images --target tensorrt10
sensitivity BUNDLE --data images --images 0 | sensitivity BUNDLE --data images --samples 0
sensitivity BUNDLE --data images --no-latency --runtime onnxruntime | sensitivity BUNDLE --data images --csv nowhere/x
sensitivity nowhere --data images | sensitivity lemevit_tny --data images
optimize lemevit_tny --data images --runtime onnxruntime -o o | optimize lemevit_tiny --data nowhere --runtime ort -o o
optimize lemevit_tiny --data images --runtime tensorrt -o o | optimize lemevit_tiny --data images --runtime none -o o
optimize lemevit_tiny --data images --runtime ort -o model.onnx
optimize lemevit_tiny --data images --runtime ort -o images --force
optimize lemevit_tiny --data images --runtime ort -o o --search random
optimize lemevit_tiny --data images --runtime ort -o o --minutes 0
optimize lemevit_tiny --data images --runtime ort -o o --method none
optimize lemevit_tiny --data images --runtime ort -o o --max-drop -1
fleet verify BUNDLE --hosts nowhere | fleet verify nowhere --hosts hosts.toml | fleet verfy BUNDLE --hosts hosts.toml
fleet verify BUNDLE --hosts wrong.toml | fleet verify BUNDLE --hosts text.png | fleet verify BUNDLE --hosts none.toml
fleet verify BUNDLE --hosts hosts.toml --only nobody | fleet verify BUNDLE --hosts hosts.toml --parallel 0
fleet validate BUNDLE --hosts hosts.toml | fleet verify BUNDLE --hosts hosts.toml --device-table table
fleet verify BUNDLE --hosts hosts.toml -o model.onnx | fleet verify damaged --hosts hosts.toml
models nothing_of_this_name
""".replace("\n", " | ")
    .strip(" |")
    .split(" | ")
)

EXPORTING = (
    """
export nowhere | export lemevit_tny | export lemevit_tiny --target tensorrt9 | export lemevit_tiny --precision fp17
export lemevit_tiny --precision int8 | export lemevit_tiny --calibration images | export lemevit_tiny --samples 3
export lemevit_tiny --image-size 8 | export lemevit_tiny --num-classes 0
export lemevit_tiny --checkpoint nowhere.pth
export lemevit_tiny --labels nowhere.txt | export lemevit_tiny --reference nowhere.png | export lemevit_tiny --set x=1
export lemevit_tiny -o model.onnx | export lemevit_tiny -o BUNDLE | export lemevit_tiny -o BUNDLE/inner
export lemevit_tiny --int8 --calibration images --method magic | export nowhere.py:f | export text.png
export model.onnx
export lemevit_tiny --preprocessing size=3 | export lemevit_tiny --input a=1x2 | export timm: | export hf:
""".replace("\n", " | ")
    .strip(" |")
    .split(" | ")
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the command lines name; what they must not find is not there. The name has a blank."""
    folder = tmp_path_factory.mktemp("a place")
    write_tiny_bundle(folder / "BUNDLE", 2)
    damaged = write_tiny_bundle(folder / "damaged", 2)
    (damaged.path / "model.onnx").write_bytes(b"no model")
    for name in ("empty", "images"):
        (folder / name).mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "images/a.png")
    (folder / "text.png").write_text("no image")
    (folder / "text.tar").write_text("no tar")
    (folder / "model.onnx").write_text("no model")
    (folder / "hosts.toml").write_text('[hosts.one]\naddress = "127.0.0.1"\nport = 1')
    (folder / "wrong.toml").write_text('[hosts.one]\nadress = "127.0.0.1"')
    (folder / "none.toml").write_text("[defaults]")
    return folder


@pytest.mark.parametrize("line", [*FAILING, *EXPORTING])
def test_what_a_real_error_tells_to_type_can_be_typed(
    line: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if line in EXPORTING:
        pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    if line.startswith("fleet"):
        pytest.importorskip("asyncssh")
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    command, *rest = line.split()
    words = [str(place / word) if word in ("BUNDLE", "nowhere", "damaged", "empty") else word for word in rest]
    assert main([command, *words, "--json"]) in (1, 2)
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["error", "why", "try", "exit_code"], "it is an error, not a gate"
    assert told["try"], told
    assert not told["error"].startswith("unexpected")
    for text in (told["error"], told["why"] or "", told["try"]):
        assert [one for one in commands_in(text) if not parses(one)] == []
    allowed = OPTIONS[command] | named(told["try"])
    assert [option for option in bare_options(told["try"]) if option not in allowed] == [], told["try"]
    runtimes = re.findall(r"--runtime (\w+)", without_commands(told["try"]))
    assert command != "build" or set(runtimes) <= set(ENGINES)
