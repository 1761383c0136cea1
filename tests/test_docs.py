"""README, CONTRIBUTING and docs: tables equal the data they repeat, pages show what exists, prose keeps its width."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest

from tests.docs.pages import BLOCKS, PAGES, ROOT, TEXT, calls
from tests.rows import RULES, TARGETS
from tests.test_plugins import ENTRY_POINTS
from vitdeploy import bundle, registry, schemas
from vitdeploy.bundle.sbom import SBOM
from vitdeploy.cli import main
from vitdeploy.platforms.devices import DEVICES
from vitdeploy.runtime.backends.openvino import IR_MODEL, IR_WEIGHTS

PACKAGE = ROOT / "vitdeploy"
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 120

PROGRAMS = [(block.page, block.text) for block in BLOCKS if block.language == "python"]
RENAMED = ("--streams", "--ignore", "--remedy", "--plot")


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the only table of `page` whose first column is headed `heading`, without code marks."""
    lines, found = TEXT[page].splitlines(), []
    for number, line in enumerate(lines):
        if line.startswith(f"| {heading} |") and lines[number + 1].startswith("| ---"):
            rows = []
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip().replace("`", "") for cell in row.strip("|").split("|")])
            found.append(rows)
    assert len(found) == 1, f"{page} has {len(found)} tables that begin with {heading!r}"
    return found[0]


def column(page: str, heading: str) -> list[str]:
    """The first column of that table."""
    return [row[0] for row in table(page, heading)]


def yes(value: bool) -> str:
    return "yes" if value else "no"


# The tables of docs/targets.md


def test_the_targets_and_their_runtimes_are_the_rows() -> None:
    rows = [[name, str(row.opset), ", ".join(row.runtimes), row.description] for name, row in TARGETS.items()]
    assert table("targets.md", "target | opset") == rows


def test_the_forms_of_the_targets_are_the_rows() -> None:
    assert table("targets.md", "target | GELU") == [
        [
            name,
            row.gelu,
            row.layer_norm,
            row.key_transpose,
            row.projections,
            row.linear,
            yes(row.drops_batch),
            yes(row.channels_last_maps),
            str(row.min_deconvolution_group),
        ]
        for name, row in TARGETS.items()
    ]
    assert table("targets.md", "target | one channel a group") == [
        [
            name,
            row.deconvolution[0].replace("_", " "),
            row.projection_bias,
            row.shared_streams,
            str(row.columns_at_once),
            ", ".join(row.absorbs_projections) or "no",
            yes(row.int8 is not None and row.int8.packed_heads),
        ]
        for name, row in TARGETS.items()
    ]


def test_the_int8_rules_of_the_targets_are_the_rows() -> None:
    assert table("targets.md", "target | activations") == [
        [
            name,
            f"{'int8' if row.activation.signed else 'uint8'}, "
            f"{'symmetric' if row.activation.symmetric else 'asymmetric'}",
            yes(row.int32_bias),
            yes(row.convolution_output),
            yes(row.pair_per_consumer),
            yes(row.half_rest),
        ]
        for name, row in RULES.items()
    ]


def test_the_devices_of_the_estimate_are_the_rows() -> None:
    assert table("targets.md", "device") == [
        [device.name, *(f"{value:g}" for value in (device.bandwidth, device.int8, device.fp16, device.fp32))]
        for device in DEVICES
    ]


def test_the_first_screen_names_every_target_and_says_that_no_gpu_was_used() -> None:
    screen = TEXT["README.md"].partition("\n## ")[0]
    (line,) = re.findall(r"\*\*Targets are data\.\*\*(.*?)described", screen, re.DOTALL)
    assert re.findall(r"`(\w+)`", line) == list(TARGETS)
    assert re.search(r"\| TensorRT \| \*\*not yet run on a GPU\*\*", screen)


def test_the_first_page_of_the_site_says_the_same_of_the_runtimes() -> None:
    assert table("index.md", "runtime") == table("README.md", "runtime")


# Output for programs


def test_the_schemas_of_the_page_are_those_of_the_package() -> None:
    assert table("json.md", "schema") == [[name, schemas.schema(name)["title"]] for name in schemas.names()]


# The zoo


def test_the_table_of_models_is_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = []
    for card in json.loads(capsys.readouterr().out)["models"]:
        kind = "**reconstruction**" if card["reconstruction"] else "official code"
        sizes = [card, *card["other_sizes"]]
        for size in sizes:
            number = [str(size[key]) if size[key] is not None else "" for key in ("gmacs", "top1")]
            pixels = str(size["image_size"][0])
            rows.append([card["name"], f"{card['parameters'] / 1e6:.2f}M", *number, pixels, kind])
    assert table("models.md", "model") == rows


# The measurements


def int8_tables(*name: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "int8_table.py"), *name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("network", ["lemevit", "dualvit"])
def test_the_int8_tables_without_vnni_are_the_results(network: str) -> None:
    printed = int8_tables(f"int8_avx2_{network}").partition("ONNX Runtime**\n")[2].partition("**")[0].splitlines()
    rows = [line for line in printed if line.startswith("|")]
    assert len(rows) > 8
    assert [line for line in rows if line not in TEXT["benchmarks.md"].splitlines()] == []


def test_the_int8_tables_are_the_results() -> None:
    printed = int8_tables().splitlines()
    assert len(printed) > 30
    shown = set(TEXT["benchmarks.md"].splitlines())
    assert [line for line in printed if line and line not in shown] == []


def test_the_tables_of_other_peoples_networks_are_the_results() -> None:
    script = ROOT / "benchmarks" / "any_model.py"
    command = [sys.executable, str(script), "--table"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(printed) > 60
    shown = set(TEXT["benchmarks.md"].splitlines())
    assert [line for line in printed if line and line not in shown] == []


def test_the_table_of_graph_forms_is_the_results() -> None:
    pytest.importorskip("torch")
    command = [sys.executable, str(ROOT / "benchmarks" / "graph_forms.py"), "--table"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(printed) > 10
    shown = set(TEXT["benchmarks.md"].splitlines())
    assert [line for line in printed if line and line not in shown] == []


def test_the_nodes_of_linear_layers_on_rows_are_the_results() -> None:
    form, saved = " onnxruntime without token_rows", json.loads((RESULTS / "form_times.json").read_text())
    kinds = ("QGemm", "MatMulIntegerToFloat", "Add", "Reshape")
    counted = [
        (f"{title.removesuffix(form)}, batch {key.removesuffix(' int8')}, INT8", found["nodes"])
        for title, row in saved.items()
        if title.endswith(form)
        for key, found in row["batches"].items()
        if key.endswith(" int8")
    ]
    assert len(counted) > 2
    assert table("benchmarks.md", "nodes that ONNX Runtime executes | QGemm") == [
        [name, *(f"{nodes['without'].get(kind, 0)}, now {nodes['with'].get(kind, 0)}" for kind in kinds)]
        for name, nodes in counted
    ]


# What is inside a bundle


def test_the_files_of_a_bundle_are_those_that_are_written() -> None:
    listed = ", ".join(column("README.md", "file")).split(", ")
    assert listed == [bundle.MANIFEST, bundle.MODEL, IR_MODEL, IR_WEIGHTS, bundle.REFERENCE, SBOM, bundle.SIGNATURE]


# The public face


def test_from_python_shows_every_command_that_is_a_function() -> None:
    section = TEXT["README.md"].partition("## From Python")[2].partition("\n## ")[0]
    shown = {name for _, program in PROGRAMS if program in section for name, _ in calls(program)}
    assert shown >= {"load", "verify", "validate", "benchmark", "check", "inspect", "doctor", "build", "export", "sign"}


@pytest.mark.parametrize("page", [name for name in TEXT if name != "CHANGELOG.md"])
def test_no_page_names_an_option_that_has_another_name_now(page: str) -> None:
    assert [word for word in RENAMED if re.search(rf"{word}(?![\w-])", TEXT[page])] == []


def entries(text: str) -> dict[str, dict[str, str]]:
    """The entry points of a package by their group, from TOML or from `entry_points.txt`."""
    groups: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if head := re.fullmatch(r"\[(?:project\.entry-points\.)?\"?([\w.]+)\"?\]", line):
            groups[head[1]] = {}
        elif line:
            name, _, value = line.partition(" = ")
            groups[list(groups)[-1]][name] = value.strip('"')
    return groups


def test_the_plugin_section_has_every_group_and_the_entry_points_of_the_sample() -> None:
    assert column("README.md", "group of entry points") == re.findall(r"`(vitdeploy\.\w+)`", str(registry.__doc__))
    (toml,) = [block.text for block in BLOCKS if (block.page, block.language) == ("README.md", "toml")]
    assert entries(toml) == entries(ENTRY_POINTS)


# The install


def test_the_jetson_page_names_what_its_install_brings() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (line,) = re.findall(r"^dependencies = (\[.*\])$", project, re.MULTILINE)
    brought = ast.literal_eval(line)
    (extras,) = set(re.findall(r"vitdeploy\[([\w,]+)\]", TEXT["jetson.md"]))
    for extra in extras.split(","):
        (line,) = re.findall(rf"^{extra} = (\[.*\])$", project, re.MULTILINE)
        brought += ast.literal_eval(line)
    (told,) = re.findall(r"This installs (.*?)\.", TEXT["jetson.md"], re.DOTALL)
    named = set(re.split(r",\s+|\s+and\s+", told.lower()))
    assert named == {re.split(r"[<>=]", requirement)[0] for requirement in brought}


# CONTRIBUTING


def test_every_package_is_described_and_no_other() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    listed = [name for cell in column("CONTRIBUTING.md", "package") for name in cell.split(", ")]
    assert len(listed) == len(set(listed))
    assert {name.removesuffix("/") for name in listed} == folders | modules


def test_every_file_that_contributing_names_exists() -> None:
    named = re.findall(r"`((?:vitdeploy|tests|docs|benchmarks|scripts|examples)/[\w./-]+)`", TEXT["CONTRIBUTING.md"])
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_glossary_is_short() -> None:
    assert 5 <= len(column("CONTRIBUTING.md", "word")) <= 10


# Form


@pytest.mark.parametrize("page", TEXT)
def test_prose_keeps_its_width(page: str) -> None:
    prose = re.sub(r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), TEXT[page], flags=re.M | re.S)
    long = [n for n, line in enumerate(prose.splitlines(), 1) if len(line) > WIDTH and not line.startswith("|")]
    assert long == [], f"{page}: lines of more than {WIDTH} columns"


@pytest.mark.parametrize("page", TEXT)
def test_a_row_of_a_table_is_longer_only_for_a_link_or_a_command(page: str) -> None:
    rows = [line for line in TEXT[page].splitlines() if line.startswith("|") and len(line) > WIDTH]
    assert [row for row in rows if "](" not in row and "`" not in row] == []


@pytest.mark.parametrize("page", TEXT)
def test_every_link_leads_somewhere(page: str) -> None:
    path = PAGES[page]
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", TEXT[page]):
        file = path.parent / target if target else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
