"""The rules of fused attention against NVIDIA's compiler, over a table of forms."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from benchmarks import attention_forms as table
from vitdeploy.platforms.boards import find_platform
from vitdeploy.platforms.fusion_rules import measured
from vitdeploy.platforms.parser_reports import COMPILER
from vitdeploy.platforms.report import Rule
from vitdeploy.tensorrt.rtx.requirements import unavailable

FOUND = json.loads(table.RESULTS.read_text())
FORMS = {form.name: form for form in table.forms()}
MEASURED: dict[str, bool | None] = FOUND["forms"]


def test_the_table_is_of_this_version_and_of_every_form() -> None:
    assert FOUND["version"].startswith(COMPILER.rpartition(" ")[2])
    assert set(MEASURED) == set(FORMS)
    counts = Counter(MEASURED.values())
    assert None not in counts, "every form compiles"
    assert min(counts[True], counts[False]) > 50


@pytest.mark.parametrize("name", MEASURED)
def test_the_compiler_is_never_contradicted(name: str) -> None:
    """For the product that was asked it decides; where the guide says otherwise of TensorRT, that is open."""
    assert table.judged(FORMS[name], "tensorrt_rtx")[0] is MEASURED[name]
    for platform in ("tensorrt10.16", "tensorrt11", "tensorrt10"):
        assert table.judged(FORMS[name], platform)[0] in (MEASURED[name], None)


def test_what_is_open_is_what_the_guide_says_otherwise() -> None:
    open_ = {name for name in MEASURED if table.judged(FORMS[name])[0] is None}
    assert {name for name in open_ if MEASURED[name]} >= {"head=20", "head=36", "scale=scores", "casts=True", "rank=3"}
    assert {name for name in open_ if not MEASURED[name]} >= {"heads=1", "kv_heads=1"}
    assert "usual" not in open_
    # TensorRT 8 is another compiler: there the guide alone speaks.
    assert all(table.judged(FORMS[name], "tensorrt8.6")[0] is not None for name in MEASURED)


def test_a_rule_names_both() -> None:
    no, yes = Rule("scale", False, "it scales", "do not"), Rule("one matrix", True, "batch 1 and one head")
    assert measured(no, None, find_platform("tensorrt11")) is no
    assert measured(no, True, find_platform("tensorrt8")) is no
    both = measured(no, True, find_platform("tensorrt11"))
    assert (both.holds, both.detail) == (None, f"it scales; the guide does not, {COMPILER} fuses it")
    assert measured(no, True, find_platform("tensorrt_rtx")).holds is True
    both = measured(yes, False, find_platform("tensorrt10"))
    assert (both.holds, both.detail) == (
        None,
        f"batch 1 and one head; the guide allows it, {COMPILER} does not fuse it",
    )
    assert measured(yes, False, find_platform("tensorrt_rtx")).holds is False


@pytest.mark.nvidia
@pytest.mark.skipif(unavailable() is not None, reason="vitdeploy[nvidia] is not installed")
def test_the_compiler_still_does_what_was_measured() -> None:
    assert dict(zip(FORMS, table.measured(list(FORMS.values())), strict=True)) == MEASURED
