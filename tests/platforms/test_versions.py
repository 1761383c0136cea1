"""Versions that cannot be told fulfil no condition, and fail nothing."""

from __future__ import annotations

import pytest

from vitdeploy.machine.hardware import jetpack_of_l4t
from vitdeploy.platforms.known_bad import KNOWN_BAD, Circumstances, matching_rows
from vitdeploy.platforms.versions import version_matches


@pytest.mark.parametrize("version", ["unknown", "", "v"])
@pytest.mark.parametrize("condition", ["<2", "<=2.0", ">1", ">=0", "==0.*", "!=1.0", "<7,>=0"])
def test_an_unknown_version_fulfils_no_condition(version: str, condition: str) -> None:
    assert not version_matches(version, condition)
    assert version_matches(version, "")


def test_a_package_of_unknown_version_is_hit_by_the_rows_for_every_version_alone() -> None:
    for package in {row.package for row in KNOWN_BAD}:
        found = matching_rows(Circumstances({package: "unknown"}, architecture="aarch64", properties={"bf16": True}))
        assert all(row.versions == "" for row, _ in found)


def test_what_is_no_condition_is_refused() -> None:
    for version in ("1.0", "unknown"):
        with pytest.raises(ValueError, match="not a condition"):
            version_matches(version, "about 2")


@pytest.mark.parametrize(
    ("l4t", "jetpack"), [("36.4.", "6.1"), ("36.4", "6.1"), ("36", None), (".", None), ("", None), ("R", None)]
)
def test_an_incomplete_release_names_what_it_tells(l4t: str, jetpack: str | None) -> None:
    assert jetpack_of_l4t(l4t) == jetpack
