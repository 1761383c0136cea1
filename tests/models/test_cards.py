"""The zoo's table and cards against the published numbers, written down here once more and independently."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch

from vitdeploy.cli import main
from vitdeploy.models.registry import CARD_MODULES, build, cards


class Published(NamedTuple):
    """parameters of the network as it is built; the rest as printed by its authors, None where they printed nothing.

    millions  parameters in millions, with as many decimals as printed
    sizes     {side of the square image: (multiply-adds in 1e9, ImageNet-1K top-1 in percent)}, the default first
    """

    parameters: int
    millions: str | None
    sizes: dict[int, tuple[float | None, float | None]]


NOTHING = {224: (None, None)}

PUBLISHED = {
    # The README's first table. It prints 1.68 for tiny, its table of scene recognition 1.78, which is what one counts.
    "lemevit_tiny": Published(8_635_816, "8.64", {224: (1.78, 79.07)}),
    "lemevit_small": Published(16_400_456, "16.40", {224: (3.74, 81.88)}),
    "lemevit_base": Published(53_098_152, "53.10", {224: (11.06, 84.35)}),
    # Registered in the official code, without results. The last one is tiny with ten classes instead of a thousand.
    "lemevit_small_v2": Published(14_373_480, None, NOTHING),
    "lemevit_tiny_v2": Published(13_855_464, None, NOTHING),
    "vit_tiny": Published(13_369_224, None, NOTHING),
    "lemevit_tiny.eurosat": Published(8_635_816 - 990 * (320 + 1), None, {64: (None, None)}),
    # README of the official classification code; parameters include the auxiliary head.
    "dualvit_s": Published(25_054_000, "25.1", {224: (5.4, 84.1), 384: (18.4, 85.2)}),
    "dualvit_b": Published(42_627_024, "42.6", {224: (9.3, 85.2), 384: (31.9, 86.0)}),
    "dualvit_l": Published(72_966_544, "73.0", {224: (18.0, 85.7), 384: (60.5, 86.5)}),
    # README of the official code.
    "qnavit_tiny": Published(15_715_560, "16", {224: (2.5, 81.7)}),
    "qnavit_tiny_7x7": Published(15_753_960, "16", {224: (2.6, 82.0)}),
    "qnavit_small": Published(24_971_560, "25", {224: (4.4, 83.2)}),
    "qnavit_base": Published(55_670_008, "56", {224: (9.7, 83.9)}),
    # Abstract; no parameter counts there.
    "saevit_xs": Published(4_996_488, None, {224: (0.8, 76.3)}),
    "saevit_s": Published(7_217_074, None, {224: (1.3, 79.6)}),
    # Abstract: one size, 43.35M parameters, which the reconstruction meets within 3 %.
    "cagevit_tiny": Published(7_717_780, None, NOTHING),
    "cagevit_small": Published(25_519_672, None, NOTHING),
    "cagevit_base": Published(43_826_000, None, {224: (None, 83.4)}),
}

RECONSTRUCTIONS = {
    "saevit_xs": ("0.8 GFLOPs", "76.3 %"),
    "saevit_s": ("1.3 GFLOPs", "79.6 %"),
    "cagevit_tiny": ("43.35M", "83.4 %"),
    "cagevit_small": ("43.35M", "83.4 %"),
    "cagevit_base": ("43.35M", "83.4 %"),
}

PAPERS = {
    "lemevit": ("2405.09789", "github.com/ViTAE-Transformer/LeMeViT"),
    "dualvit": ("2207.04976", "github.com/YehLi/ImageNetModel"),
    "qnavit": ("2112.11435", "github.com/moabarar/qna"),
    "saevit": ("2508.16884",),
    "cagevit": ("2305.09924",),
}


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["models", *arguments, "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}


def test_the_table_holds_every_variant_with_its_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys)
    assert rows.keys() == PUBLISHED.keys()
    for name, published in PUBLISHED.items():
        row = rows[name]
        found = {(row["image_size"][0], row["image_size"][1]): (row["gmacs"], row["top1"])}
        found |= {tuple(other["image_size"]): (other["gmacs"], other["top1"]) for other in row["other_sizes"]}
        assert found == {(side, side): numbers for side, numbers in published.sizes.items()}, name
        assert row["image_size"][0] == next(iter(published.sizes)), name
        assert row["num_classes"] == (10 if name == "lemevit_tiny.eurosat" else 1000), name
        assert row["parameters"] == published.parameters, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_network(name: str) -> None:
    with torch.device("meta"):
        network = build(cards()[name])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == PUBLISHED[name].parameters == cards()[name].parameters
    if millions := PUBLISHED[name].millions:
        decimals = len(millions.partition(".")[2])
        assert f"{count / 1e6:.{decimals}f}" == millions
    if name == "cagevit_base":
        assert count == pytest.approx(43.35e6, rel=0.03)


def test_the_printed_table_shows_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert printed[0].split() == ["model", "params", "GMACs", "top-1", "size", "weights", "source"]
    found: dict[str, dict[int, tuple[float | None, ...]]] = {}
    for line in printed[2:]:
        name, parameters, macs, top1, size, weights, *source = line.replace(" *", "").split()
        numbers = tuple(None if cell == "-" else float(cell) for cell in (macs, top1))
        found.setdefault(name, {})[int(size)] = numbers
        assert parameters == f"{PUBLISHED[name].parameters / 1e6:.2f}M"
        assert weights == ("included" if name == "lemevit_tiny.eurosat" else "-")
        assert source
        assert (" *" in line) == (name in RECONSTRUCTIONS)
    assert found == {name: published.sizes for name, published in PUBLISHED.items()}


def test_a_reconstruction_says_that_it_is_one_and_what_is_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys)
    assert {name for name, row in rows.items() if row["reconstruction"]} == RECONSTRUCTIONS.keys()
    for name, facts in RECONSTRUCTIONS.items():
        note = rows[name]["reconstruction"]
        assert "No official code" in note
        assert "weights exist" in note
        for fact in facts:
            assert fact in note, name

    assert main(["models"]) == 0
    listed, _, legend = capsys.readouterr().out.partition("\n\n")
    starred = {line.split()[0] for line in listed.splitlines() if line.split()[1:2] == ["*"]}
    assert starred == RECONSTRUCTIONS.keys()
    assert legend.startswith("* RECONSTRUCTION: ")
    for name in RECONSTRUCTIONS:
        assert main(["models", name]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert told.endswith(f"reconstruction: {' '.join(rows[name]['reconstruction'].split())}")
        assert f"source: {rows[name]['source']} " in told


def test_the_table_fits_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("models", "targets"):
        assert main([command]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize("family", CARD_MODULES)
def test_a_pattern_gives_one_family_with_its_sources(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys, f"{family}_*")
    others = {"vit_tiny"} if family == "lemevit" else set()
    assert rows.keys() == {name for name in PUBLISHED if cards()[name].family == family} - others
    for row in rows.values():
        assert row["family"] == family
        for source in PAPERS[family]:
            assert source in row["source"]
        assert ("github.com" in row["source"]) == (not row["reconstruction"])


def test_a_pattern_without_reconstructions_prints_no_notice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "lemevit_*"]) == 0
    assert "RECONSTRUCTION" not in capsys.readouterr().out


def test_only_the_trained_network_comes_with_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for name, row in table(capsys).items():
        assert row["weights"].endswith(".safetensors") == (name == "lemevit_tiny.eurosat")
        assert name == "lemevit_tiny.eurosat" or "--checkpoint" in row["weights"]
