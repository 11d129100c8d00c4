"""Files in every format, encoding and compression: the same rows, or the line that is wrong with what mends it."""

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import pickle
import subprocess
import zipfile
from itertools import product

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.data import objects, text
from rlhf.data.formats import open_file
from rlhf.data.rows import BadRow
from rlhf.errors import DataError

ROWS = [{"prompt": f"Frage {i}: wärst\u2028du?", "completion": f'Ja, "sehr" {i};\nnein'} for i in range(25)]


def values(rows, *bounds):
    return [row.values for row in rows.read(*bounds)]


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sheet(delimiter=",", rows=ROWS):
    def cell(word):
        return '"' + word.replace('"', '""') + '"'

    table = [list(rows[0]), *(row.values() for row in rows)]
    return "".join(delimiter.join(map(cell, row)) + "\r\n" for row in table)


def zipped(data, name="rows.jsonl"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("__MACOSX/._rows", b"x")
        packed.writestr(name, data)
    return stream.getvalue()


def zstd(data):
    return pyarrow.Codec("zstd").compress(data).to_pybytes()


TEXTS = {
    "rows.jsonl": lines(),
    "rows.ndjson": lines().replace("\n", "\r\n") + "\n\n",
    "rows.json": json.dumps(ROWS, ensure_ascii=False),
    "pretty.json": json.dumps(ROWS, indent=2),
    "wrapped.json": json.dumps({"version": "1", "about": {"n": [1]}, "data": ROWS}, ensure_ascii=False),
    "lines.json": lines(),
    "together.json": lines().replace("}\n{", "}{"),
    "spread.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "array.jsonl": json.dumps(ROWS, ensure_ascii=False) + "\n",
    "rows.csv": sheet(),
    "office.csv": sheet(";"),
    "blank.csv": "\r\n\r\n" + sheet(),
    "excel.csv": "sep=;\r\n" + sheet(";"),
    "tab.csv": sheet("\t"),
    "rows.tsv": sheet("\t"),
    "rows": lines(),
    "array": json.dumps(ROWS),
}


NAMED = [name for name in TEXTS if "." in name]  # without a suffix only UTF-8 is told
ENCODED = [*product(["utf-8", "utf-8-sig"], TEXTS), *product(["utf-16", "utf-32"], NAMED)]


@pytest.mark.parametrize(("encoding", "name"), ENCODED)
def test_text_in_every_format_and_encoding_gives_the_same_rows(tmp_path, monkeypatch, name, encoding):
    monkeypatch.setattr(text, "STEP", 4)
    monkeypatch.setattr(objects, "HEAD", 300)  # so that values lie across what is read at once
    (tmp_path / name).write_bytes(TEXTS[name].encode(encoding))
    rows = open_file(tmp_path / name)
    assert values(rows) == ROWS
    assert values(rows, 7, 9) == ROWS[7:9] and values(rows, 24) == ROWS[24:] and values(rows, 30) == []
    assert len(rows) == 25
    copy = pickle.loads(pickle.dumps(rows))
    for start, stop in ((0, 4), (3, 11), (8, 8), (20, None), (24, 99)):
        assert values(copy, start, stop) == ROWS[start:stop]
    whole = [row.where for row in rows.read()]
    assert [row.where for row in copy.read(9, 14)] == whole[9:14]
    assert encoding != "utf-8" or len(rows.marks) == 7, "places to start from are noted"


@pytest.mark.parametrize(
    "suffix, pack", [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_compressed_files_are_read(tmp_path, suffix, pack):
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        (tmp_path / (name + suffix)).write_bytes(pack(TEXTS[name].encode()))
        rows = open_file(tmp_path / (name + suffix))
        assert len(rows) == 25 and values(rows) == ROWS and values(rows, 20, 22) == ROWS[20:22]
    (tmp_path / "bare").write_bytes(pack(TEXTS["rows.jsonl"].encode()))
    assert values(open_file(tmp_path / "bare")) == ROWS
    (tmp_path / f"false.jsonl{suffix}").write_text(lines())
    assert values(open_file(tmp_path / f"false.jsonl{suffix}")) == ROWS, "by its bytes, whatever its name says"
    (tmp_path / f"cut.jsonl{suffix}").write_bytes(pack(TEXTS["rows.jsonl"].encode() * 50)[:-20])
    with pytest.raises(DataError, match=rf"cut.jsonl{suffix} can't be read"):
        values(open_file(tmp_path / f"cut.jsonl{suffix}"))


def test_a_zip_of_one_file_is_read_and_one_of_several_is_refused(tmp_path):
    (tmp_path / "rows.zip").write_bytes(zipped(TEXTS["rows.csv"].encode(), "rows.csv"))
    (tmp_path / "rows.jsonl.zip").write_bytes(zipped(lines().encode()))
    assert values(open_file(tmp_path / "rows.zip")) == values(open_file(tmp_path / "rows.jsonl.zip")) == ROWS
    with zipfile.ZipFile(tmp_path / "rows.zip", "a") as packed:
        packed.writestr("more.csv", b"a,b\n")
    with pytest.raises(DataError, match=r"holds 2 files \(rows.csv, more.csv\), one is read\n  fix: unzip "):
        open_file(tmp_path / "rows.zip")


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid",
            "pointer of Git LFS.*\n  fix: git -C .* lfs pull",
        ),
        ("notes.txt", b"some words, and more\n", "neither its name nor its first bytes.*\n  fix: mv "),
        ("a.json", b"prompt,completion\n", r"a.json:1: not JSON: expected \[ around the rows, found 'p'"),
        ("a.json", b"", "a.json:1: .*found the end of the file"),
        ("a.json", b'[\n{"a": 1},\n{"a": 2}\n', r"a.json:4: not JSON: expected , or \] after a row, found the end"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', "a.json:2: not JSON: expected , or . after a row, found '{'"),
        ("a.json", b'[{"a": 1},\n{"a": x}]', "a.json:2: not JSON: Expecting value"),
        ("a.json", b'[{"a": 1},\n]', "a.json:2: not JSON: Expecting value"),
        ("a.json", b'[{"a": "no end}]', "a.json:1: not JSON: Unterminated string"),
        ("a.json", b'[{"a": 1}]\nrest', "a.json:2: not JSON: more after the end"),
        ("a.json", b'{"valid": [{"a": 1}], "test": [{"a": 1}]}', "several lists of rows: valid, test\n  fix: python"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: two columns are called a"),
        ("a.csv", b"a,b\r1,2\r", "carriage returns alone\n  fix: tr"),
        ("a.csv", b"gr\xfc\xdfe,b\n1,2\n", "a.csv:1: not UTF-8 .*WINDOWS-1252\n  fix: iconv -f WINDOWS-1252"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), "UTF-16LE without a byte order mark\n  fix: iconv -f UTF-16LE"),
        ("a.parquet", b"PAR1 and nothing else", "not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(open_file(tmp_path / name).read())


DEEP = b"[" * 100_000 + b"]" * 100_000
BROKEN = [
    ("a.jsonl", b'{"a": \n', 2, "not JSON: Expecting value at column 7"),
    ("a.jsonl", b'["a"]\n', 2, "expected an object with named columns, found list"),
    ("a.jsonl", b'{"a": "\xfc"}\n', 2, "not UTF-8 .*0xfc.*WINDOWS-1252"),
    ("a.jsonl", b'{"a": ' + DEEP + b"}\n", 2, "nested too deep"),
    ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", 2, "not JSON that can be read: Exceeds the limit"),
    ("a.jsonl", b'{"a": "\\ud83d"}\n', 2, r"\\ud83d is half of a character"),
    ("a.json", b'["a", 1]', 2, "expected an object with named columns, found list"),
    ("a.json", b'{"a": ' + DEEP + b"}", 2, "nested too deep"),
    ("a.json", b'{"a": ' + b"1" * 5000 + b"}", 2, "not JSON that can be read"),
    ("a.json", b'{"a": "\xfc"}', 2, "not UTF-8"),
    ("a.json", b'{"a": "\\ud83d"}', 2, "half of a character"),
    ("a.csv", b"1,2,3\n", 3, "expected 2 columns, as in the first line, found 3"),
    ("a.csv", b"1\n", 3, "expected 2 columns, as in the first line, found 1"),
    ("a.csv", b"a\0b,1\n", 3, "a NUL byte"),
    ("a.csv", b"a,\xfc\n", 3, "not UTF-8"),
    ("a.csv", b'"torn,1\n', 3, "a quote that is torn or never closed"),
    ("a.csv", b'a,"torn\n', 3, "a quote that is torn or never closed"),
    ("a.csv", b'"a"b,1\n', 3, "a quote that is torn or never closed"),
]


@pytest.mark.parametrize("name, broken, line, message", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("head", [2**20, 64])
def test_a_row_that_breaks_alone_is_a_bad_row_between_good_ones(
    tmp_path, monkeypatch, name, broken, line, message, head
):
    monkeypatch.setattr(objects, "HEAD", head)
    before, good, after = {
        "a.jsonl": (b"", b'{"a": "1", "b": "2"}\n', b""),
        "a.json": (b"[", b'{"a": "1", "b": "2"}', b"]"),
        "a.csv": (b"a,b\n", b"1,2\n", b""),
    }[name]
    between = b",\n" if name == "a.json" else b""
    (tmp_path / name).write_bytes(before + between.join([good, broken, good, good]) + after)
    rows = open_file(tmp_path / name)
    found = list(rows.read())
    assert [row.bad is None for row in found] == [True, False, True, True] and len(rows) == 4
    assert all(found[i].values == {"a": "1", "b": "2"} for i in (0, 2, 3))
    assert f"{name}:{line}" in found[1].where and f":{line + 1}" in found[2].where
    with pytest.raises(BadRow, match=message):
        _ = found[1].values
    again = pickle.loads(pickle.dumps(found[1]))
    assert (again.bad.reason, str(again.bad), again.bad.fix) == (
        found[1].bad.reason,
        str(found[1].bad),
        found[1].bad.fix,
    )


def test_a_quote_that_is_never_closed_takes_no_other_row_with_it(tmp_path):
    rows = "".join(f'"{i}, with a comma","a ""b"""\n' for i in range(50))
    (tmp_path / "a.csv").write_text("a,b\n" + rows + 'c,"never closed\n' + rows)
    found = list(open_file(tmp_path / "a.csv").read())
    assert [row.where.rpartition(":")[2] for row in found if row.bad] == ["52"]
    assert len(found) == 101


def test_the_command_that_mends_an_encoding_can_be_pasted(tmp_path):
    file = tmp_path / "my rows.csv"
    file.write_bytes("prompt,completion\nGrüße,für dich\n".encode("cp1252"))
    (row,) = open_file(file).read()
    subprocess.run(["bash", "-c", row.bad.fix], check=True)
    assert values(open_file(tmp_path / "utf8-my rows.csv")) == [{"prompt": "Grüße", "completion": "für dich"}]


def test_a_csv_cell_has_no_limit(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n" + "x" * 200_000 + ",y\n")
    assert values(open_file(tmp_path / "a.csv")) == [{"a": "x" * 200_000, "b": "y"}]


def test_a_row_alone_in_a_json_file_is_a_row(tmp_path):
    for row in (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "a", "replies": [{"text": "b"}, {"text": "c"}]},
        {"turns": [{"from": "human", "value": "a"}]},
    ):
        (tmp_path / "a.json").write_text(json.dumps(row))
        assert values(open_file(tmp_path / "a.json")) == [row]
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert values(open_file(tmp_path / "a.json")) == ROWS


def test_a_large_array_is_not_held_in_memory(tmp_path):
    import tracemalloc

    with (tmp_path / "a.json").open("w") as file:
        file.write('{"data": [' + ",".join([json.dumps({"text": "word " * 200})] * 20_000) + "]}")
    assert (tmp_path / "a.json").stat().st_size > 20e6
    tracemalloc.start()
    rows = open_file(tmp_path / "a.json")
    assert len(rows) == 20_000 and sum(1 for _ in rows.read()) == 20_000
    assert len(list(rows.read(19_990))) == 10
    assert tracemalloc.get_traced_memory()[1] < 12e6
    tracemalloc.stop()


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TURNS = [
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    [{"role": "user", "content": "b"}, {"role": "tool", "content": "c", "name": "f"}],
]


def test_json_in_parquet_comes_back_as_what_it_was(tmp_path):
    import datasets

    rows = [{"id": i, "messages": turns, "meta": {"a": i if i else "none"}} for i, turns in enumerate(TURNS)]
    kinds = {"id": datasets.Value("int64"), "messages": datasets.List(datasets.Json()), "meta": datasets.Json()}
    made = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    made.to_parquet(tmp_path / "a.parquet")
    assert values(open_file(tmp_path / "a.parquet")) == rows
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    plain = pyarrow.table(  # as a writer leaves it that keeps the metadata and knows no extension
        [[0, 1], [[json.dumps(turn) for turn in turns] for turns in TURNS], ['{"a": "none"}', '{"a": 1}']],
        names=table.column_names,
    )
    pyarrow.parquet.write_table(plain.replace_schema_metadata(table.schema.metadata), tmp_path / "b.parquet")
    assert values(open_file(tmp_path / "b.parquet")) == rows
    pyarrow.parquet.write_table(plain, tmp_path / "c.parquet")
    assert values(open_file(tmp_path / "c.parquet"))[1]["meta"] == '{"a": 1}', "text that nobody calls JSON stays text"


def test_keys_that_arrow_put_into_every_turn_are_left_out_again(tmp_path):
    rows = [{"messages": turns, "facts": {"a": None, "b": 1}, "seen": datetime.date(2024, 5, 1)} for turns in TURNS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()[1]["messages"][0]["tool_calls"] is None
    assert values(open_file(tmp_path / "a.parquet")) == rows


def test_parquet_is_read_from_the_middle_of_its_groups(tmp_path):
    rows = [{"i": i} for i in range(2500)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1200)
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    for name in ("a.parquet", "b.parquet.gz"):
        found = pickle.loads(pickle.dumps(open_file(tmp_path / name)))
        assert len(found) == 2500
        for start, stop in ((0, None), (5, 7), (1199, 1201), (1500, 2450), (2400, None), (2500, 2600), (990, 1010)):
            assert values(found, start, stop) == rows[start:stop]
        assert next(found.read(1300)).where == f"{tmp_path / name}:1300"


def test_a_date_that_python_has_not_breaks_alone(tmp_path):
    days = pyarrow.array([0, -800_000, 10], pyarrow.int32()).cast(pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"day": days, "i": [0, 1, 2]}), tmp_path / "a.parquet")
    found = list(open_file(tmp_path / "a.parquet").read())
    assert [row.bad is None for row in found] == [True, False, True] and found[2].values["i"] == 2


def test_csv_as_python_writes_it_comes_back(tmp_path):
    rows = [{"a": 'x"y', "b": "1\n2\r\n3", "c": ""}, {"a": ",", "b": "'", "c": " z "}]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert values(open_file(tmp_path / "a.csv")) == rows
