from __future__ import annotations

import pytest

from scaler_wizard.tables import Table, plain


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("820K -> 1.64M [−0.4, +0.1] (R&D)", "820K -> 1.64M [−0.4, +0.1] (R&D)"),
        ("[x](javascript:1)", "[x\\](javascript:1)"),
        ("[x]: http://a", "[x\\]: http://a"),
        ("<b>&lt;</b>", "\\<b>\\&lt;\\</b>"),
        ("a|b\n# c", "a\\|b # c"),
        ("# not a heading", "\\# not a heading"),
        ("*a* _b_ `c` \\", "\\*a\\* \\_b\\_ \\`c\\` \\\\"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert plain(text) == escaped


def test_a_cell_cannot_leave_its_column() -> None:
    table = Table(("one", "two"), (("a | b", "<i>\nc"),))
    lines = table.markdown().splitlines()
    assert lines == ["| one | two |", "| --- | --- |", "| a \\| b | \\<i> c |"]
    assert "<i>" not in table.html() and "&lt;i&gt;" in table.html()
