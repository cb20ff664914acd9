"""Where each key of a TOML text stands."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.lines import locate


def test_every_kind_of_key_has_its_line() -> None:
    text = """# a comment with [brackets] and = signs
title = "x"

[data]
"quoted key" = 1
split = { test = 0.1, validation = 0.2 }
names = [
  "a",  # the comma is before the comment
  "b",
]
text = \"\"\"
[not.a.table]
\"\"\"

[train.optimizer]
lr = 0.1

[[items]]
name = "one"
[[items]]
name = "two"
"""
    lines = locate(text)
    assert lines["title",] == 2
    assert lines["data",] == 4
    assert lines["data", "quoted key"] == 5
    assert lines["data", "split", "validation"] == 6
    assert lines["data", "names", 1] == 9
    assert lines["train", "optimizer", "lr"] == 16
    assert lines["items", 1, "name"] == 21
    assert ("not",) not in lines


def test_dotted_keys_and_windows_line_ends() -> None:
    lines = locate("[train]\r\noptimizer.name = 'adam'\r\noptimizer.lr = 1\r\n")
    assert lines["train", "optimizer"] == 2
    assert lines["train", "optimizer", "lr"] == 3


keys = st.text(
    st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5
) | st.sampled_from(['"a b"', "'c.d'", '"\\u00e9"'])
scalars = st.sampled_from(
    ["1", "-0.5", "true", '"x"', "'#'", '"]}"', "1979-05-27", '"""a\nb"""', "'''\n]'''"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[" + ",\n ".join(items) + "]"),
    max_leaves=5,
)


@given(
    st.lists(
        st.tuples(keys, values, st.sampled_from(["", "\n", "  # note = [1"])),
        max_size=6,
        unique_by=lambda item: item[0],
    )
)
def test_finds_each_key_where_it_was_written(pairs: list[tuple[str, str, str]]) -> None:
    text, expected = "", {}
    for key, value, after in pairs:
        expected[key] = text.count("\n") + 1
        text += f"{key} = {value}{after}\n"
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # two spellings of one key
        return
    lines = locate(text)
    for key, line in expected.items():
        name = next(iter(tomllib.loads(f"{key} = 0")))
        assert lines[name,] == line


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "[a]"])
def test_nothing_to_find(text: str) -> None:
    assert set(locate(text)) <= {("a",)}
