"""Parquet, Arrow and JSON Lines: the same table in any of them is the same data, also in shards."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.data.dataset import dataset_id, prepare
from modelyard.data.sources import open_source
from modelyard.data.sources.base import Source
from modelyard.spec.errors import DataError

FORMATS = ("parquet", "arrow", "jsonl")


def write(path: Path, rows: list[dict[str, Any]], kind: str, group: int = 7) -> None:
    """``rows`` as a file of one of the formats, in row groups or batches of ``group``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        content = text.encode()
        path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
        return
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=group, write_page_checksum=True)
        return
    make = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=group)


def people(count: int = 60) -> list[dict[str, Any]]:
    return [
        {
            "age": None if row % 20 == 3 else 20 + row,
            "smoker": row % 2 == 0,
            "town": "NA" if row % 15 == 4 else ("Jena", "Gera", "Weimar")[row % 3],
            "height": 150 + row / 8,
            "ill": ("healthy", "ill")[row % 4 == 0],
        }
        for row in range(count)
    ]


def suffix(kind: str) -> str:
    return {"parquet": ".parquet", "arrow": ".arrow", "jsonl": ".jsonl"}[kind]


@pytest.fixture
def read(project, tmp_path: Path):
    """``read({"a.parquet": rows, …}, "parquet")`` -> the source over the folder, or over the one file."""

    def opened(files: dict[str, list[dict[str, Any]]], kind: str, **data: Any) -> Source:
        for name, rows in files.items():
            write(tmp_path / "data" / name, rows, kind)
        path = f"data/{next(iter(files))}" if len(files) == 1 else "data"
        return open_source(project(**{"source": kind, "path": path, "target": "ill", **data}))

    return opened


def values(source: Source) -> dict[str, list[Any]]:
    """By column, as people read them."""
    rows = source.rows(0, len(source)).values
    found: dict[str, list[Any]] = {}
    for column in source.schema().columns:
        raw = rows[column.name].tolist()
        if column.kind == "categorical":
            found[column.name] = [column.words[code] if code >= 0 else None for code in raw]
        else:
            found[column.name] = [None if math.isnan(value) else value for value in raw]
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_what_csv_gives(kind: str, read, project, tmp_path: Path) -> None:
    """Kinds, values, gaps, words and targets; the CSV source is the reference."""
    rows = people()
    lines = [
        ",".join(rows[0]),
        *(",".join("" if v is None else str(v) for v in r.values()) for r in rows),
    ]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    reference = open_source(project(source="csv", path="people.csv", target="ill"))
    source = read({"all" + suffix(kind): rows}, kind)
    assert [(c.name, c.kind) for c in source.schema().columns] == [
        (c.name, c.kind) for c in reference.schema().columns
    ]
    assert values(source) == values(reference)
    assert source.targets().tolist() == reference.targets().tolist()
    assert sorted(f.message for f in source.findings()) == sorted(
        f.message for f in reference.findings()
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_are_one_table_in_natural_order(kind: str, read) -> None:
    rows = people()
    end = suffix(kind)
    names = [f"part-{number}{end}" for number in (1, 2, 10)]
    source = read({name: rows[20 * i : 20 * i + 20] for i, name in enumerate(names)}, kind)
    whole = read({"../one/all" + end: rows}, kind, path=f"one/all{end}")
    assert [path.name for path in source.files()] == names
    assert values(source) == values(whole)
    place = "line 6" if kind == "jsonl" else "row 5"
    assert source.name(45) == f"part-10{end}, {place}"
    assert whole.name(45) == ("line 46" if kind == "jsonl" else "row 45")


def source_project(source: Source):
    """The project of a source, to open it afresh."""
    from modelyard.spec.project import Project

    return Project.model_validate(
        {
            "project": {"name": "test"},
            "data": source.data.model_dump(),
            "model": {"build": "mlp"},
            "root": source.root,
        }
    )


@pytest.mark.parametrize("name", ["a.arrows", "a.feather", "b.jsonl.gz"])
def test_streams_and_compressed_files(name: str, read) -> None:
    kind = "jsonl" if "json" in name else "arrow"
    assert read({name: people()}, kind).targets().tolist() == [row["ill"] for row in people()]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_declared_kind_goes_first(kind: str, read) -> None:
    source = read(
        {"a" + suffix(kind): people()}, kind, columns={"age": "categorical", "height": "ignore"}
    )
    described = {c.name: c.kind for c in source.schema().columns}
    assert described == {"age": "categorical", "smoker": "boolean", "town": "categorical"}
    assert values(source)["age"][:4] == ["20", "21", "22", None]


def test_types_that_are_no_cells_are_left_out_and_said(read, tmp_path: Path) -> None:
    rows = [
        {"x": i, "tags": ["a"], "day": pa.scalar(i, pa.date32()).as_py(), "ill": i % 2}
        for i in range(9)
    ]
    source = read({"a.parquet": rows}, "parquet")
    assert [c.name for c in source.schema().columns] == ["x"]
    told = [f.message for f in source.findings() if f.kind == "unused"]
    assert len(told) == 2 and "date32[day]" in told[1]
    with pytest.raises(DataError, match=r"the target 'day' holds date32"):
        read({"a.parquet": rows}, "parquet", target="day").schema()


def test_dictionary_columns_and_decimals(tmp_path: Path, project) -> None:
    table = pa.table(
        {
            "town": pa.array(["a", None, "b", "a", " b"]).dictionary_encode(),
            "price": pa.array([1, 2, None, 4, 5], pa.decimal128(9, 2)),
            "nothing": pa.nulls(5),
            "y": [1, 2, 3, 1, None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(project(source="parquet", path="a.parquet", target="y"))
    assert values(source) == {"town": ["a", None, "b", "a", "b"], "price": [1, 2, None, 4, 5]}
    assert source.targets().tolist() == [1, 2, 3, 1, None]


def test_keys_that_come_late_are_missing_before(read) -> None:
    rows = [{"a": i, "ill": i % 2} for i in range(10)] + [
        {"a": 5, "b": i, "ill": 0} for i in range(3)
    ]
    source = read({"a.jsonl": rows}, "jsonl")
    assert values(source)["b"] == [None] * 10 + [0, 1, 2]
    assert "column 'b': 10 of 13 values are missing (76.9%)" in {
        f.message for f in source.findings()
    }


# --- what goes wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_target_or_a_declared_column_that_is_not_there(kind: str, read) -> None:
    rows = {"a" + suffix(kind): people()}
    with pytest.raises(DataError, match="no target column 'il'; did you mean 'ill'"):
        read(rows, kind, target="il").schema()
    with pytest.raises(DataError, match=r"names 'agee', .* did you mean 'age'"):
        read(rows, kind, columns={"agee": "numeric"}).schema()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_shards_with_other_columns_are_refused(kind: str, read) -> None:
    end, first = suffix(kind), people(20)
    with pytest.raises(DataError, match=f"a{end} has a column 'town', .*b{end} has none"):
        read(
            {
                f"a{end}": first,
                f"b{end}": [
                    {**r, "town": None} and {k: v for k, v in r.items() if k != "town"}
                    for r in first
                ],
            },
            kind,
        ).schema()
    with pytest.raises(DataError, match=f"'age' is numeric in .*a{end}, categorical in .*b{end}"):
        read({f"a{end}": first, f"b{end}": [{**row, "age": "x"} for row in first]}, kind).schema()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("a.parqet", "parquet", r"ends in '.parqet'.*did you mean '.parquet'"),
        ("a.jsonl", "parquet", r"ends in '.jsonl'"),
        ("a", "arrow", r"ends in 'no suffix'"),
    ],
)
def test_a_suffix_that_is_not_known(
    name: str, kind: str, words: str, tmp_path: Path, project
) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(DataError, match=words) as caught:
        open_source(project(source=kind, path=name)).schema()
    if name == "a.jsonl":
        assert caught.value.mend == 'set data.source = "jsonl"'


def test_an_empty_folder(tmp_path: Path, project) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="is an empty folder"):
        open_source(project(source="parquet", path="data")).schema()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("content", [b"", b"nonsense" * 40])
def test_a_file_that_is_something_else(kind: str, content: bytes, tmp_path: Path, project) -> None:
    (tmp_path / ("a" + suffix(kind))).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as") as caught:
        open_source(project(source=kind, path="a" + suffix(kind))).schema()
    assert "not known" in caught.value.mend


def test_one_json_array_is_explained(tmp_path: Path, project) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}]')
    with pytest.raises(DataError, match="one JSON array and not JSON Lines"):
        open_source(project(source="jsonl", path="a.json")).schema()


def test_infinite_numbers_are_named(read) -> None:
    rows = people()
    rows[31]["height"] = math.inf
    with pytest.raises(DataError, match="row 31: column 'height': inf is not a finite number"):
        read({"a.parquet": rows}, "parquet").schema()


# --- damage: counted, named, and refused only past the limit --------------------------------


def test_lines_that_are_no_records(read, project, store) -> None:
    source = read({"a.jsonl": people()}, "jsonl", max_unreadable=0.06)
    file = source.files()[0]
    lines = file.read_text().splitlines()
    lines[10], lines[20], lines[30] = (
        '{"age": 3',
        "[1, 2]",
        lines[30].replace('"ill": "', '"ill": ["').replace('"}', '"]}'),
    )
    file.write_text("\n".join(lines) + "\n\n")
    source = open_source(source_project(source))
    assert len(source) == 60 and sum(map(len, source.lost())) == 3
    dataset = prepare(source_project(source), store)
    assert dataset.samples == 57
    finding = next(f for f in dataset.quality if f.kind == "unreadable")
    assert finding.message.startswith("3 samples cannot be read")
    assert [example.split(":")[0] for example in finding.examples] == [
        "line 11",
        "line 21",
        "line 31",
    ]
    strict = project(source="jsonl", path="data/a.jsonl", target="ill", max_unreadable=0.04)
    with pytest.raises(
        DataError,
        match=r"3 of 60 samples cannot be read: line 11: .*; line 21: it holds a JSON array",
    ) as caught:
        prepare(strict, store)
    assert "data.max_unreadable = 0.05" in caught.value.mend


def test_csv_lines_that_are_no_records(tmp_path: Path, project, store) -> None:
    lines = ["age,ill", *(f"{20 + row},{('no', 'yes')[row % 3 == 0]}" for row in range(60))]
    lines[7], lines[30], lines[40] = "1,2,3", '"27,no', lines[41].replace("n", "\udcff")
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    asked = {"source": "csv", "path": "a.csv", "target": "ill"}
    with pytest.raises(
        DataError, match=r"line 8: 3 cells where the header has 2; line 31: .*; line 41: byte 0xff"
    ):
        prepare(project(**asked), store)
    dataset = prepare(project(**asked, max_unreadable=0.05), store)
    assert dataset.samples == 57
    assert len(next(f for f in dataset.quality if f.kind == "unreadable").examples) == 3


def test_a_damaged_row_group_is_counted_and_named(read, store) -> None:
    end = ".parquet"
    rows = [
        {**row, "noise": float(np.random.default_rng(i).normal())}
        for i, row in enumerate(people(400))
    ]
    for part in range(4):
        write(
            Path(store.root.parent / "data" / f"p{part}{end}"),
            rows[100 * part : 100 * part + 100],
            "parquet",
            10,
        )
    source = read({f"p9{end}": people(0) or rows[:10]}, "parquet", path="data", max_unreadable=0.05)
    damaged = source.files()[2]
    group = pq.ParquetFile(damaged).metadata.row_group(3)
    place = next(
        group.column(i)
        for i in range(group.num_columns)
        if group.column(i).path_in_schema == "noise"
    )
    content = bytearray(damaged.read_bytes())
    middle = (
        (place.dictionary_page_offset or place.data_page_offset) + place.total_compressed_size - 20
    )
    content[middle : middle + 8] = b"\xff" * 8
    damaged.write_bytes(content)
    source = open_source(source_project(source))
    assert [(one.start, one.stop) for one in source.lost()] == [(230, 240)]
    dataset = prepare(source_project(source), store)
    assert dataset.samples == 400
    finding = next(f for f in dataset.quality if f.kind == "unreadable")
    assert "10 samples" in finding.message
    assert finding.examples[0].startswith(
        "p2.parquet, row 30 to p2.parquet, row 39: row group 3 is damaged"
    )
    strict = source_project(source).model_copy(
        update={"data": source.data.model_copy(update={"max_unreadable": 0.0})}
    )
    with pytest.raises(DataError, match=r"10 of 410 samples cannot be read: p2\.parquet, row 30"):
        prepare(strict, store)


def test_a_damaged_record_batch_is_counted_and_named(read) -> None:
    source = read({"a.arrow": people(60)}, "arrow", max_unreadable=0.2)
    file = source.files()[0]
    with pa.ipc.open_file(pa.OSFile(str(file))) as reader:
        assert reader.num_record_batches == 9
        start = bytes(reader.get_batch(3).column(2).buffers()[1])  # offsets of the towns
    content = file.read_bytes()
    at = content.index(start, 2000)
    file.write_bytes(
        content[:at] + b"\xff\xff\xff\x7f" * (len(start) // 4) + content[at + len(start) :]
    )
    source = open_source(source_project(source))
    lost = source.lost()
    assert lost and all(len(one) == 7 and "record batch" in one.why for one in lost)
    assert sum(target is None for target in source.targets()) == sum(map(len, lost))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None
)
@given(draw=st.data())
def test_any_damage_is_refused_or_counted(draw: st.DataObject, read) -> None:
    """Whatever byte of a file is wrong: a DataError, or as many targets as rows. No crash."""
    kind = draw.draw(st.sampled_from(FORMATS))
    source = read({"a" + suffix(kind): people(30)}, kind, max_unreadable=0.9)
    file = source.files()[0]
    content = bytearray(file.read_bytes())
    for _ in range(draw.draw(st.integers(1, 3))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    file.write_bytes(
        content[: draw.draw(st.integers(0, len(content)))] if draw.draw(st.booleans()) else content
    )
    source = open_source(source_project(source))
    try:
        assert (
            len(source.targets())
            == len(source)
            == len(next(iter(source.rows(0, len(source)).values.values())))
        )
    except DataError as error:
        assert error.what and error.mend


def test_the_cache_is_no_part_of_the_identity(read, store) -> None:
    source = read({"a.jsonl": people()}, "jsonl")
    other = read({"a.jsonl": people()}, "jsonl", cache_gb=3)
    assert dataset_id(source_project(source), store) == dataset_id(source_project(other), store)


WITHOUT = """
import sys
sys.modules["pyarrow"] = None
from modelyard.data.sources import BUILT_IN
from modelyard.spec.errors import MissingExtraError
from modelyard.spec.plugins import load
for name in ("jsonl", "npz", "text", "csv", "images"):
    load("sources", name, BUILT_IN)
for name in ("parquet", "arrow"):
    try:
        load("sources", name, BUILT_IN)
    except MissingExtraError as error:
        print(error.mend)
"""


def test_a_missing_extra_is_named_and_the_other_sources_do_without() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["pip install 'modelyard[arrow]'"] * 2, done.stderr
