import pytest

from stepsal import InputError
from stepsal.markdown import markdown_table


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
