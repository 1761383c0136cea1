"""Tables in plain text."""

from __future__ import annotations

import pytest

from vitdeploy.table import render

ROWS = [["ant", "1", "-"], ["beetle", "20", "-3.5"]]


def test_columns_of_numbers_are_right_aligned_and_others_left() -> None:
    assert render(ROWS, header=["name", "n", "drop"]) == (
        "name     n  drop\n"
        "------  --  ----\n"
        "ant      1     -\n"
        "beetle  20  -3.5"
    )  # fmt: skip
    assert render([["a", ""], ["b", "7"]]) == "a\nb  7"


def test_alignment_can_be_given_a_column_and_the_rule_left_out() -> None:
    assert render(ROWS, header=["name", "n", "drop"], align="><<", rule=False) == (
        "  name  n   drop\n"
        "   ant  1   -\n"
        "beetle  20  -3.5"
    )  # fmt: skip


def test_a_table_may_be_empty() -> None:
    assert render([]) == ""
    assert render([], header=["name", "n"]) == "name  n\n----  -"


def test_every_row_and_the_alignment_have_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        render([["a", "b"], ["c"]], align="<<")
    with pytest.raises(ValueError, match="2 columns, but 1 alignments"):
        render([["a", "b"]], align="<")
