import math
import re

import pytest

from stepsal import InputError
from stepsal.markdown import markdown_table, plain_text, significant, with_interval


def test_a_table_has_a_header_a_rule_and_a_line_for_each_row():
    assert markdown_table(["a", "b"], [["1", ""], ["x y", "−2"]]) == "| a | b |\n|---|---|\n| 1 |  |\n| x y | −2 |"
    assert markdown_table(["a"], []) == "| a |\n|---|"


def test_numbers_are_aligned_to_the_right_of_the_column_that_names_them():
    table = markdown_table(("a", "b", "c"), iter([("1", "2", "3")]), align_numbers=True)
    assert table == "| a | b | c |\n| --- | ---: | ---: |\n| 1 | 2 | 3 |"


def test_a_bar_in_a_cell_opens_no_other_cell():
    assert markdown_table(["a|b"], [["|"]]) == "| a\\|b |\n|---|\n| \\| |"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(InputError, match="row 1 of the table has 1 cells, but the header names 2 columns"):
        markdown_table(["a", "b"], [["1", "2"], ["3"]])


def test_a_table_in_plain_text_has_aligned_columns_numbers_to_the_right_and_no_markup():
    table = markdown_table(["setting", "p|n", "note"], [["a", "0.5", "x"], ["long name", "-12", ""]])
    assert plain_text(f"**Title.** one\n\n{table}\n\nend", 80).splitlines() == [
        "Title. one",
        "",
        "setting    p|n  note",
        "---------  ---  ----",
        "a          0.5  x",
        "long name  -12",
        "",
        "end",
    ]


def test_a_table_wider_than_the_terminal_goes_on_below_with_its_first_column_again():
    header = ["name", *(f"column {i}" for i in range(8))]
    table = markdown_table(header, [["row", *(str(i) for i in range(8))], ["other", *(str(-i) for i in range(8))]])
    text = plain_text(table, 40)
    assert max(map(len, text.splitlines())) <= 40
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert len(blocks) == 3
    assert all(block[-2].startswith("row  ") and block[-1].startswith("other") for block in blocks)
    assert re.findall(r"column (\d)", text) == [str(i) for i in range(8)]
    assert [cell for block in blocks for cell in block[-2].split()[1:]] == [str(i) for i in range(8)]


def test_long_lines_are_wrapped_but_those_that_are_laid_out_by_hand():
    text = plain_text("one two three four five\nfolder/a-long-name   what it holds\n", 12)
    assert text == "one two\nthree four\nfive\nfolder/a-long-name   what it holds\n"


@pytest.mark.parametrize("digits", [2, 3])
def test_a_number_keeps_its_significant_digits_at_every_size(digits):
    for exponent in range(-9, 7):
        for mantissa in (1.0, 1.2345, 9.994, 9.9999):
            value = mantissa * 10.0**exponent
            text = significant(value, digits)
            assert float(text) == pytest.approx(value, rel=0.5 * 10 ** (1 - digits) / mantissa + 1e-12)
            assert len(text) <= 8
    assert significant(-0.5, sign="+") == "-0.500"
    assert significant(0.5, sign="+") == "+0.500"


def test_an_interval_has_the_decimals_of_its_largest_number():
    assert with_interval(12.584, 8.331, 17.077) == "+12.6 (+8.3 to +17.1)"
    assert with_interval(2e-6, -1e-6, 3e-6) == "+2.00e-06 (-1.00e-06 to +3.00e-06)"
    assert with_interval(0.0, 0.0, 0.0) == "+0 (+0 to +0)"
    assert with_interval(0.25, math.nan, math.nan, sign="") == "0.250"
    assert with_interval(math.nan, 0.0, 1.0) == ""
