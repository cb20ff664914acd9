"""CSV files: any delimiter, kinds judged on all rows, every mistake named with its line."""

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.data.sources import open_source
from modelyard.data.sources.base import Source
from modelyard.data.sources.csv import sniff
from modelyard.spec.errors import DataError


@pytest.fixture
def read(project, tmp_path: Path):
    """``read(text, target="y")`` -> the source, opened."""

    def opened(text: str | bytes, target: str = "y", **data: object) -> Source:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "data.csv").write_bytes(content)
        return open_source(project(source="csv", path="data.csv", target=target, **data))

    return opened


def kinds(source: Source) -> dict[str, str]:
    return {column.name: column.kind for column in source.schema().columns}


def column(source: Source, name: str) -> list[object]:
    """Values as people read them, None where they are missing."""
    described = next(c for c in source.schema().columns if c.name == name)
    values = source.rows(0, len(source)).values[name].tolist()
    if described.kind == "categorical":
        return [described.words[code] if code >= 0 else None for code in values]
    return [None if math.isnan(value) else value for value in values]


def test_kinds_are_judged_on_all_rows(read) -> None:
    source = read("n,b,c,y\n1,yes,red,a\n-2.5e3,no,,b\n,YES,blue,a\n")
    assert kinds(source) == {"n": "numeric", "b": "boolean", "c": "categorical"}
    assert column(source, "n") == [1.0, -2500.0, None]
    assert column(source, "b") == [1.0, 0.0, 1.0]
    assert column(source, "c") == ["red", None, "blue"]
    assert source.targets().tolist() == ["a", "b", "a"]
    assert [f.message for f in source.findings() if f.kind == "missing"] == [
        "column 'n': 1 of 3 values are missing (33.3%)",
        "column 'c': 1 of 3 values are missing (33.3%)",
    ]


@pytest.mark.parametrize(
    "pair", [("true", "false"), ("Yes", "no"), ("1", "0"), ("1.0", "0.0"), ("T", "F")]
)
def test_words_for_truths(read, pair: tuple[str, str]) -> None:
    source = read(f"b,y\n{pair[0]},a\n{pair[1]},b\n?,a\n")
    assert kinds(source) == {"b": "boolean"} and column(source, "b") == [1.0, 0.0, None]


def test_a_declared_kind_goes_first(read) -> None:
    source = read(
        "zip,flag,free,y\n1,1,x,a\n2,0,y,b\n3,1,z,a\n",
        columns={"zip": "categorical", "flag": "numeric", "free": "ignore"},
    )
    assert kinds(source) == {"zip": "categorical", "flag": "numeric"}


def test_constant_and_identifying_columns_are_left_out_and_reported(read) -> None:
    rows = "".join(f"name{i},7,,{i % 5},{i % 2}\n" for i in range(30))
    source = read("id,same,empty,n,y\n" + rows)
    assert kinds(source) == {"n": "numeric"}
    assert {f.kind: f.message.split(":")[0] for f in source.findings()} == {
        "constant": "column 'empty' is left out",
        "identifier": "column 'id' is left out",
    }
    kept = read(
        "id,n,y\n" + "".join(f"w{i},{i % 5},0\n" for i in range(30)), columns={"id": "categorical"}
    )
    assert kinds(kept) == {"id": "categorical", "n": "numeric"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(read, delimiter: str) -> None:
    lines = [["a b", "n", "y"], ['say "1,5; 2"', "1", "u"], ["x|y\tz", "2", "v"]]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(lines)
    source = read(buffer.getvalue())
    assert column(source, "a b") == ['say "1,5; 2"', "x|y\tz"]
    assert kinds(source)["n"] == "numeric"


def test_decimal_commas_do_not_hide_the_semicolon(read, tmp_path: Path) -> None:
    read("a;b;y\n1,5;2,5;u\n3,5;4,5;v\n")
    assert sniff(tmp_path / "data.csv") == ";"


def test_a_byte_order_mark_blank_lines_and_spaces_do_no_harm(read) -> None:
    source = read(b"\xef\xbb\xbfn , y\r\n1, a \r\n\r\n2,b\r\n\r\n")
    assert column(source, "n") == [1.0, 2.0]
    assert source.targets().tolist() == ["a", "b"]
    assert [source.name(row) for row in range(2)] == ["line 2", "line 4"]


def test_cells_over_several_lines_count_as_lines(read) -> None:
    source = read('c,n,y\n"two\nlines",1,a\nx,2,b\n')
    assert [source.name(row) for row in range(2)] == ["line 3", "line 4"]


def test_text_in_a_numeric_column_names_lines_values_and_the_mend(read) -> None:
    cells = [str(i) for i in range(40)]
    cells[4], cells[10] = "twenty", "3O"
    source = read("age,n,y\n" + "".join(f"{cell},{i},a\n" for i, cell in enumerate(cells)))
    with pytest.raises(DataError) as caught:
        source.schema()
    assert "text in a numeric column: 'age' has 2 cells" in caught.value.what
    assert "line 6 'twenty', line 12 '3O'" in caught.value.what
    assert 'age = "categorical"' in caught.value.mend


def test_a_column_with_more_text_is_categorical(read) -> None:
    assert kinds(read("c,y\n1,a\n2,b\nx,a\nz,b\n")) == {"c": "categorical"}


def test_text_in_a_column_declared_numeric(read) -> None:
    with pytest.raises(DataError, match="text in a numeric column: 'c'"):
        read("c,y\n1,a\nx,b\nz,a\n", columns={"c": "numeric"}).schema()


def test_no_truth_in_a_column_declared_boolean(read) -> None:
    with pytest.raises(DataError, match="line 3: column 'c': 'maybe' is neither true nor false"):
        read("c,y\nyes,a\nmaybe,b\n", columns={"c": "boolean"}).schema()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,ill\n", "has a header but no rows"),
        ("a,il\n1,2\n", "no target column 'ill'; did you mean 'il'"),
        ("a,a,ill\n1,2,3\n", "has 'a' twice"),
        ("a,ill\n1,2\n1,2,3\n", "line 3: 3 cells where the header has 2"),
        ("a,ill\n1\n", "line 2: 1 cells where the header has 2"),
        ('a,ill\n"1,2\n', "line 2: unexpected end of data"),
        (b"a,ill\n1,2\n\xe9,3\n", "line 3: byte 0xe9 is not UTF-8"),
        ("a,ill\n1,2\n".encode("utf-16"), "is UTF-16"),
        ("a,ill\n1,x\n1,y\n", "no column is left"),
        ("a,ill\n" + "x" * 200_000 + ",1\n", "field larger than"),
    ],
)
def test_a_broken_file_is_explained(read, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(text, target="ill").schema()
    assert caught.value.mend


def test_a_setting_for_a_column_that_is_not_there(read) -> None:
    with pytest.raises(DataError, match=r"names 'agee', which .* did you mean 'age'"):
        read("age,y\n1,2\n", columns={"agee": "numeric"}).schema()


def test_labels_that_are_missing_are_none(read) -> None:
    source = read("n,y\n1,a\n2,\n3,nan\n4, NA \n5,b\n")
    assert source.targets().tolist() == ["a", None, None, None, "b"]


def test_rows_beyond_one_chunk(read) -> None:
    source = read("n,c,y\n" + "".join(f"{i},w{i % 7},{i % 2}\n" for i in range(20_000)))
    rows = source.rows(8190, 8195).values
    assert rows["n"].tolist() == [8190, 8191, 8192, 8193, 8194]
    assert [source.schema().columns[1].words[code] for code in rows["c"]] == [
        f"w{i % 7}" for i in range(8190, 8195)
    ]


finite = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)  # no -0.0
words = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n\x00", exclude_categories=["Cs"]),
    min_size=1,
).map(lambda text: f"w {text} w")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(finite, words),
        min_size=3,
        max_size=15,
    ),
    st.sampled_from(",;\t|"),
)
def test_what_a_csv_writer_writes_is_read_back(read, rows, delimiter: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["place", "number", "word", "row"])
    writer.writerows([place, *row, f"r{place}"] for place, row in enumerate(rows))
    source = read(
        buffer.getvalue(),
        target="row",
        columns={"number": "numeric", "word": "categorical"},
    )
    assert source.targets().tolist() == [f"r{place}" for place in range(len(rows))]
    names = {c.name for c in source.schema().columns}
    if "number" in names:
        assert column(source, "number") == [row[0] for row in rows]
    if "word" in names:
        assert column(source, "word") == [row[1] for row in rows]
    same = {"number": len({row[0] for row in rows}) == 1, "word": len({r[1] for r in rows}) == 1}
    assert all((name in names) != constant for name, constant in same.items())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.binary(max_size=60) | st.text(alphabet='ay,;"\n 1.x', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_data_error(read, content: bytes) -> None:
    source = read(b"a,y\n" + content)
    try:
        assert len(source.targets()) == len(source) == len(source.rows(0, len(source)).values["a"])
    except DataError as error:
        assert error.what


@pytest.fixture
def shards(project, tmp_path: Path):
    """``shards({name: text})`` -> the source, opened on a folder of these files."""

    def opened(texts: dict[str, str], **data: object) -> Source:
        for name, text in texts.items():
            (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "parts" / name).write_text(text)
        return open_source(project(source="csv", path="parts", target="y", **data))

    return opened


def test_a_folder_is_one_table_in_natural_order(shards) -> None:
    source = shards(
        {
            "part-10.csv": "n,c,y\n5,red,a\n",
            "part-2.csv": "n;c;y\n3;blue;b\n4;;a\n",  # each file may have its own delimiter
            "deep/part-1.csv": "n,c,y\n1,red,a\n2,green,b\n",
            "empty.csv": "n,c,y\n",
            "README.md": "not a table",
        }
    )
    assert column(source, "n") == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert column(source, "c") == ["red", "green", "blue", None, "red"]
    assert source.targets().tolist() == ["a", "b", "b", "a", "a"]
    assert [source.name(row) for row in range(5)] == [
        "deep/part-1.csv, line 2",
        "deep/part-1.csv, line 3",
        "part-2.csv, line 2",
        "part-2.csv, line 3",
        "part-10.csv, line 2",
    ]
    unused = next(found for found in source.findings() if found.kind == "unused")
    assert unused.examples == ("README.md",)


def test_a_broken_line_of_a_folder_is_named_with_its_file(shards) -> None:
    texts = {"1.csv": "n,y\n1,a\n2,b\n", "2.csv": "n,y\n1,a\n2,b,c\n3,a\n"}
    with pytest.raises(DataError, match=r"1 of 5 .*2\.csv, line 3: 3 cells where the header has 2"):
        shards(texts).targets()
    source = shards(texts, max_unreadable=0.2)
    assert len(source) == 5 and [source.name(one.start) for one in source.lost()] == [
        "2.csv, line 3"
    ]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("n,z,y\n1,2,a\n", r"1\.csv has a column 'm', .*2\.csv has none"),
        ("n,m,y,z\n1,2,a,3\n", r"2\.csv has a column 'z', .*1\.csv has none"),
        ("m,n,y\n1,2,a\n", r"columns of .*2\.csv are in another order than those of .*1\.csv"),
        ("", r"2\.csv is empty"),
    ],
)
def test_files_that_differ_are_refused_with_their_names(shards, second: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        len(shards({"1.csv": "n,m,y\n1,2,a\n", "2.csv": second}))


def test_a_folder_without_tables_says_what_reads_it(shards) -> None:
    with pytest.raises(DataError, match=r'reads \.csv.*|set data.source = "parquet"'):
        len(shards({"part.parquet": "x"}))
