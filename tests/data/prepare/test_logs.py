"""Logs as new users have them: what is read, what is refused, and whether the message names the cause."""

from __future__ import annotations

import datetime
import decimal
import gzip
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lares_pl import Columns, LaresError, SequenceDataModule, SequenceDataset, prepare
from tests.console import error, lares
from tests.data.prepare.test_prepare import sequences

BASIC = "user_id,item_id,timestamp\nann,a,3\nann,b,1\nbob,a,2\n"
READ = {"ann": ["b", "a"], "bob": ["a"]}


def read(tmp_path: Path, name: str, content: str | bytes, **options: Any) -> dict[Any, list[Any]]:
    """Sequences of a file with this content."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    prepare(str(tmp_path / name), str(tmp_path / "out"), overwrite=True, **options)
    return sequences(tmp_path / "out")


def read_columns(tmp_path: Path, columns: dict[str, Any]) -> dict[Any, list[Any]]:
    """Sequences of a Parquet file with these columns."""
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    prepare(str(tmp_path / "x.parquet"), str(tmp_path / "out"), overwrite=True)
    return sequences(tmp_path / "out")


def refused(tmp_path: Path, name: str, content: str | bytes, *parts: str, **options: Any) -> None:
    """Check that a file with this content is refused with a message that has all of these parts; nothing is written."""
    folder = tmp_path / "refused"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LaresError) as caught:
        prepare(str(folder / name), str(folder / "out"), **options)
    for part in (name, *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    "written",
    [
        "2020-01-01 00:00:{:02} UTC",
        "2020-01-01 00:00:{:02}.123456 UTC",
        "2020-01-01T00:00:{:02}Z",
        "2020-01-01T00:00:{:02}.000Z",
        "2020-01-01 00:00:{:02}+00",
        "2020-01-01 00:00:{:02}+00:00",
        "2020-01-01 00:00:{:02} +0000",
        "2020-01-01 01:00:{:02} +0100",
        "2019-12-31 19:00:{:02}.000 -0500",
        "2020-01-01 00:00:{:02}.123456789",
        "2020-01-01T00:00:{:02} GMT",
        " 2020-01-01 00:00:{:02} ",
        "20200101T0000{:02}",
    ],
)
def test_times_as_databases_write_them(written: str, tmp_path: Path) -> None:
    rows = "".join(f"u,i{second},{written.format(second)}\n" for second in (2, 10, 9))
    assert read(tmp_path, "x.csv", "user_id,item_id,timestamp\n" + rows) == {"u": ["i2", "i9", "i10"]}
    stamps = pq.read_table(tmp_path / "out" / "sequences.parquet")["timestamps"].to_pylist()
    assert stamps == [[1577836802, 1577836809, 1577836810]]


def test_dates_of_other_kinds_need_their_format(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\nu,late,01/02/2020 10:00\nu,early,02/01/2020 10:00\n"
    refused(tmp_path, "x.csv", text, "data row 1 has 'timestamp' = '01/02/2020 10:00'", "--columns.time_format")
    assert read(tmp_path, "x.csv", text, columns=Columns(time_format="%d/%m/%Y %H:%M")) == {"u": ["early", "late"]}
    assert read(tmp_path, "x.csv", text, columns=Columns(time_format="%m/%d/%Y %H:%M")) == {"u": ["late", "early"]}
    said = "data row 3 has 'timestamp' = '2020-01-01'; expected a date written as '%d/%m/%Y %H:%M'"
    refused(tmp_path, "x.csv", text + "u,x,2020-01-01\n", said, columns=Columns(time_format="%d/%m/%Y %H:%M"))


def test_times_can_be_ignored(tmp_path: Path) -> None:
    """An empty name ignores the column, so a missing value in it is no error."""
    text = "user_id,item_id,timestamp\nu,a,2\nu,b,\nu,c,1\n"
    refused(tmp_path, "x.csv", text, "data row 2 has no 'timestamp'")
    assert read(tmp_path, "x.csv", text, columns=Columns(time="")) == {"u": ["a", "b", "c"]}


@pytest.mark.parametrize("name", ["Timestamp", "TIMESTAMP", " timestamp", "timestamp "])
def test_the_timestamp_column_is_found_in_any_letter_case(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, "x.csv", BASIC.replace("timestamp", name)) == READ
    refused(tmp_path, "y.csv", f"user_id,item_id,{name},TimeStamp\nu,i,1,2\n", "holds the time", "--columns.time")


# ---------------------------------------------------------------- ratings


@pytest.mark.parametrize("name", ["time", "ts", "Date", "unixReviewTime", "event_timestamp", "bought at", "order_date"])
def test_times_under_another_name_are_not_ignored_silently(name: str, tmp_path: Path) -> None:
    text = BASIC.replace("timestamp", name)
    refused(tmp_path, "x.csv", text, "no column 'timestamp'", f"--columns.time {name}", "--columns.time ''")
    assert read(tmp_path, "x.csv", text, columns=Columns(time=name)) == READ
    assert read(tmp_path, "x.csv", text, columns=Columns(time=""))["ann"] == ["a", "b"]


def test_one_column_for_users_and_items_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", BASIC, "'item_id' can't be both user and item", columns=Columns(user="item_id"))


def test_times_that_are_true_or_false_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LaresError, match=r"data row 1 has 'timestamp' = .*True"):
        read_columns(tmp_path, {"user_id": ["u"], "item_id": ["i"], "timestamp": [True]})


@pytest.mark.parametrize("rating", ["", "good", "3,5", "NaN", "\\N"])
def test_ratings_are_checked_only_with_min_rating(rating: str, tmp_path: Path) -> None:
    text = f'user_id,item_id,rating,timestamp\nu,a,5,2\nu,b,"{rating}",1\n'
    assert read(tmp_path, "x.csv", text) == {"u": ["b", "a"]}
    assert read(tmp_path, "x.csv", text, columns=Columns(rating="rating")) == {"u": ["b", "a"]}
    said = f"data row 2 has 'rating' = {rating!r}" if rating else "data row 2 has no 'rating'"
    refused(tmp_path, "y.csv", text, said, min_rating=1)
    table = {"user_id": ["u", "u"], "item_id": ["a", "b"], "rating": pa.array([5, None]), "timestamp": [2, 1]}
    assert read_columns(tmp_path, table) == {"u": ["b", "a"]}
    refused(tmp_path, "y.csv", text, "no column 'stars'", columns=Columns(rating="stars"))


def test_ratings_may_be_integers_in_one_chunk_and_floats_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lares_pl.data.prepare.readers.ROWS", 1)
    text = "user_id,item_id,rating\nu,a,5\nu,b,4.5\nu,c,4.4\n"
    assert read(tmp_path, "x.csv", text, min_rating=4.5) == {"u": ["a", "b"]}


# ---------------------------------------------------------------- ids


WHOLE = {7: [30, 10, 20]}


@pytest.mark.parametrize(
    "items",
    [
        pa.array([30.0, 10.0, 20.0]),
        pa.array([30, 10, 20], pa.float32()),
        pa.array([decimal.Decimal(n) for n in (30, 10, 20)], pa.decimal128(38, 0)),
        pa.array([decimal.Decimal(n) for n in (30, 10, 20)], pa.decimal128(38, 9)),
        pa.array([decimal.Decimal(n) for n in (30, 10, 20)], pa.decimal256(76, 38)),
        pa.array([30, 10, 20], pa.uint64()),
        pa.array([30, 10, 20], pa.int8()),
        pa.array([30, 10, 20]).dictionary_encode(),
    ],
)
def test_whole_numbers_of_any_type_become_integers(items: pa.Array, tmp_path: Path) -> None:
    assert read_columns(tmp_path, {"user_id": [7, 7, 7], "item_id": items}) == WHOLE
    assert SequenceDataset.load(tmp_path / "out").item_ids.type == pa.int64()


@pytest.mark.parametrize(
    ("items", "spelled"),
    [
        (pa.array([1.5, 15.0]), ["1.5", "15"]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal(100)], pa.decimal128(9, 2)), ["1.5", "100"]),
        (pa.array([decimal.Decimal(2**70), decimal.Decimal(7)], pa.decimal128(38, 0)), [str(2**70), "7"]),
        (pa.array([2**64 - 1, 1], pa.uint64()), [str(2**64 - 1), "1"]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.array(["007", "7"]), ["007", "7"]),
        (pa.array(["1.0", "1"]), ["1.0", "1"]),
        (pa.array(["v1.0", "v2.0"]), ["v1.0", "v2.0"]),
        (pa.array(["1.0", "2.0"]), ["1", "2"]),
        (pa.array([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)]), ["2020-01-01", "2020-01-02"]),
    ],
)
def test_other_ids_become_text(items: pa.Array, spelled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (1 << 20, 1):  # in one piece and in several
        monkeypatch.setattr("lares_pl.data.prepare.readers.ROWS", rows)
        assert read_columns(tmp_path, {"user_id": ["u", "u"], "item_id": items}) == {"u": spelled}


@pytest.mark.skipif(not hasattr(pa, "uuid"), reason="needs a newer Arrow")
def test_uuids_become_text(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=n) for n in (3, 1)]
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes for one in ids], pa.binary(16)))
    assert read_columns(tmp_path, {"user_id": ["u", "u"], "item_id": column}) == {"u": [str(one) for one in ids]}


def test_floats_in_text_become_integers_if_all_are_whole(tmp_path: Path) -> None:
    """As pandas writes integers of a column with missing values."""
    assert read(tmp_path, "x.csv", "user_id,item_id\n7.0,15.0\n7.0,11.0\n") == {"7": ["15", "11"]}
    assert read(tmp_path, "x.csv", "user_id,item_id\n7.0,15.0\n7.0,11\n") == {"7": ["15.0", "11"]}


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_floats_that_lost_digits_are_refused(kind: pa.DataType, tmp_path: Path) -> None:
    largest = {pa.float64(): 2.0**53, pa.float32(): 2.0**24, pa.float16(): 2.0**11}[kind]
    ids = pa.array(np.array([1, largest], dtype=kind.to_pandas_dtype()))
    with pytest.raises(LaresError, match=r"data row 2 has 'item_id' = .*too large to keep the digits"):
        read_columns(tmp_path, {"user_id": [1, 1], "item_id": ids})
    below = pa.array(np.array([1, largest - 1], dtype=kind.to_pandas_dtype()))
    assert read_columns(tmp_path, {"user_id": [1, 1], "item_id": below}) == {1: [1, int(largest) - 1]}


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_id_is_reported_with_its_row(missing: Any, tmp_path: Path) -> None:
    for values in ([1, 2, missing, 4], ["a", "b", missing, "d"], [1.5, 2.5, missing, 3.5]):
        pd.DataFrame({"user_id": values, "item_id": range(4)}).astype({"item_id": "Int32"}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(LaresError, match=r"data row 3 has no 'user_id'"):
            prepare(str(tmp_path / "x.parquet"), str(tmp_path / "out"))


@pytest.mark.parametrize("word", ["", "  ", "\\N"])
def test_empty_ids_are_refused(word: str, tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", f"user_id,item_id\nu,i\n{word},i\n", "data row 2 has no 'user_id'")


@pytest.mark.parametrize("word", ["NULL", "null", "nan", "NaN", "None", "<NA>", "N/A", "#N/A"])
def test_words_for_missing_values_are_refused_among_numeric_ids(word: str, tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", f"user_id,item_id\n1,i\n{word},i\n2,j\n", f"data row 2 has 'user_id' = '{word}' among numbers")
    assert read(tmp_path, "y.csv", f"user_id,item_id\nann,i\n{word},i\n") == {"ann": ["i"], word: ["i"]}


@pytest.mark.parametrize("written", ["1.23457E+12", "1,23457E+12", "1e+16"])
def test_ids_that_a_spreadsheet_rounded_are_refused(written: str, tmp_path: Path) -> None:
    text = f'user_id,item_id\nu,123\nu,"{written}"\n'
    refused(tmp_path, "x.csv", text, f"data row 2 has 'item_id' = '{written}', a number that lost digits")
    assert read(tmp_path, "x.csv", text.replace("123\n", "a\n")) == {"u": ["a", written]}  # the ids are no numbers


def test_lists_in_place_of_an_id_are_refused(tmp_path: Path) -> None:
    said = "data row 1 has a list for 'item_id'; expected one row per interaction"
    refused(tmp_path, "x.csv", 'user_id,item_id\nu,"[1, 2]"\n', said)
    with pytest.raises(LaresError, match=said):
        read_columns(tmp_path, {"user_id": ["u"], "item_id": [[1, 2]]})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LaresError, match="data row 1 has a bytes for 'item_id'"):
        read_columns(tmp_path, {"user_id": ["u"], "item_id": [b"\xff\xfe"]})


def test_blanks_around_ids_in_text_files_are_removed(tmp_path: Path) -> None:
    assert read(tmp_path, "x.csv", "user_id,item_id\nann ,a\nann,  b\n ann, c d \n") == {"ann": ["a", "b", "c d"]}


def test_repeated_rows_are_kept(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n" + "u,a,1\n" * 3
    assert read(tmp_path, "x.csv", text) == {"u": ["a", "a", "a"]}
    assert read(tmp_path, "x.csv", text, repeats="drop") == {"u": ["a"]}


# ---------------------------------------------------------------- rows of a table, or lines of items


def tables(separator: str, times: bool = True) -> str:
    """Interactions without a header."""
    rng = np.random.default_rng(0)
    rows = [[n % 24 + 1, rng.integers(1, 99), rng.integers(1, 6)] + [881250949 + 61 * n] * times for n in range(240)]
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


@pytest.mark.parametrize("separator", ["\t", " ", "   "])
@pytest.mark.parametrize("times", [True, False])
def test_rows_of_a_table_are_not_read_as_lines_of_items(separator: str, times: bool, tmp_path: Path) -> None:
    names = "user_id,item_id,rating" + ",timestamp" * times
    option = "tab" if separator == "\t" else "space"
    said = ["these may be rows such as `user item rating time`", f"--separator {option} --header {names}", "--format lines"]
    refused(tmp_path, "x.txt", tables(separator, times), *said)
    refused(tmp_path, "u.data", tables(separator, times), "unknown file extension", "--separator", "--header")
    if times:  # also where the wrong format was asked for
        refused(tmp_path, "u.data", tables(separator, times), *said[:2], format="lines")
    found = read(tmp_path, "u.data", tables(separator, times), separator=option, header=names)
    assert sum(map(len, found.values())) == 240
    assert found == read(tmp_path, "x.txt", tables(separator, times), separator=option, header=names.split(","))


def test_lines_of_items_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, "x.txt", "1 5 6 7\n2 8 6 7\n3 1 2 3\n") == {"1": list("567"), "2": list("867"), "3": list("123")}
    assert read(tmp_path, "x.txt", "1 5\n1 6\n2 5\n") == {"1": ["5", "6"], "2": ["5"]}
    several = "1 5 6\n1 7 8\n"
    refused(tmp_path, "x.txt", several, "every line has 3 fields", "--format lines")
    assert read(tmp_path, "x.txt", several, format="lines") == {"1": list("5678")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id,item_id\nu,i\n", "--format csv --separator ','"),
        ("user_id;item_id\nu;i\n", "--format csv --separator ';'"),
        ("1::1193::5::978300760\n", "--format csv --separator '::'"),
        ("user_id\titem_id\nu\ti\n", "--format csv --separator tab"),
        ("user_id item_id\nu i\n", "--format csv --separator space"),
        ("user_id:token\titem_id:token\nu\ti\n", "begins with a header"),
    ],
)
def test_tables_named_txt_are_detected(text: str, said: str, tmp_path: Path) -> None:
    refused(tmp_path, "x.txt", text, said)


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_lists_of_items_with_other_separators_are_detected(separator: str, tmp_path: Path) -> None:
    text = "".join(f"{user} {separator.join('abcd')}\n" for user in range(3))
    refused(tmp_path, "x.txt", text, f"its items are separated by {separator!r}", "--format lines")
    assert read(tmp_path, "x.txt", text, format="lines")["1"] == [separator.join("abcd")]


# ---------------------------------------------------------------- other formats


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"user_id": 1, "item_id": 2}\n', "JSON; convert it to Parquet"),
        (b'\n[\n {"user_id": 1}]', "JSON; convert it to Parquet"),
        (gzip.compress(b'{"user_id": 1, "item_id": 2}\n', mtime=0), "JSON; convert it to Parquet"),
        (b"PK\x03\x04\x14\0", "save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook"),
        (b"\xfd7zXZ\0\0\4", "compressed by xz"),
        (b"ARROW1\0\0", "pandas.read_feather"),
        (b"\xff\xff\xff\xff\xb0\1\0\0", "datasets.load_from_disk(FOLDER).to_parquet"),
        (b"ORC\x0c", "pandas.read_orc"),
        (b"\x80\x05\x95", "a pickle, which is never opened"),
        (gzip.compress(b"a.csv" + b"\0" * 252 + b"ustar\0" + b"\0" * 300, mtime=0), "a tar archive"),
        (b"\0" * 8 + b"DUCK" + b"\0" * 50, "a DuckDB database"),
        (b"<!DOCTYPE html><html>", "a page in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull`"),
    ],
)
def test_other_formats_are_named_whatever_the_file_is_called(content: bytes, said: str, tmp_path: Path) -> None:
    for name in ("x.other", "x.csv", "x.parquet", "x.txt"):
        refused(tmp_path, name, content, said)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(content)
    with pytest.raises(LaresError, match=re.escape(said)):
        prepare(str(tmp_path / "saved"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("path", "said"), [("https://example.com/x.csv", "download the file first"), ("log/*.csv", "give the folder")]
)
def test_paths_that_are_no_files_are_explained(path: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LaresError, match=said):
        prepare(path, str(tmp_path / "out"))


# ---------------------------------------------------------------- encodings


NAMES = {"Zoë": ["Käse", "Brot"]}
ROWS = "user_id,item_id\nZoë,Käse\nZoë,Brot\n"
LINES = "Zoë Käse Brot\n"


@pytest.mark.parametrize(("name", "text"), [("x.csv", ROWS), ("x.tsv", ROWS.replace(",", "\t")), ("x.txt", LINES)])
def test_encodings(name: str, text: str, tmp_path: Path) -> None:
    for marked in ("utf-8-sig", "utf-16", "utf-32"):
        assert read(tmp_path, name, text.encode(marked)) == NAMES
    assert read(tmp_path, name, text.encode("utf-8-sig"), encoding="utf-8") == NAMES
    assert read(tmp_path, name, text.encode("utf-8-sig"), encoding="cp1252") == NAMES
    for plain in ("latin-1", "cp1252", "utf-16-le", "utf-16-be", "mac-roman", "utf-8"):
        assert read(tmp_path, name, text.encode(plain), encoding=plain) == NAMES
    refused(tmp_path, name, text.encode("latin-1"), "is not written in UTF-8", "--encoding cp1252")
    refused(tmp_path, name, text.encode("utf-8"), "no encoding 'klingon'", encoding="klingon")
    refused(tmp_path, name, text.encode("cp1252"), "is not written in ascii", encoding="ascii")
    if name == "x.csv":
        plain16 = "user_id,item_id\nann,a\n".encode("utf-16-le")
        refused(tmp_path, name, plain16, "holds zero bytes, as UTF-16 does", "--encoding utf-16-le")


def test_an_encoding_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(ROWS.replace(",", ";").encode("cp1252"))
    lares(tmp_path, "prepare", "x.csv", "--output", "out", "--encoding", "cp1252", "--separator", ";")
    assert sequences(tmp_path / "out") == NAMES
    (tmp_path / "y.csv").write_text(" user_id,ITEM\nann,a\nann,b\n")
    names = ["--columns.user", " user_id", "--columns.item", "ITEM"]
    lares(tmp_path, "prepare", "y.csv", "--output", "named", *names)
    assert sequences(tmp_path / "named") == {"ann": ["a", "b"]}
    (tmp_path / "u.data").write_text("1\t2\t3\n1\t4\t5\n")
    lares(tmp_path, "prepare", "u.data", "--output", "header", "--separator", "\\t", "--header", "user_id,item_id,x")
    assert sequences(tmp_path / "header") == {"1": ["2", "4"]}
    assert "not written in UTF-8" in error(tmp_path, "prepare", "x.csv", "--output", "other", "--separator", ";")


def test_content_takes_precedence_over_the_file_name(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["u"], "item_id": ["i"]})
    pq.write_table(table, tmp_path / "x.csv")
    refused(tmp_path, "x.csv", (tmp_path / "x.csv").read_bytes(), "Parquet, whatever its name says: --format parquet")
    pq.write_table(table, tmp_path / "000000_0")
    prepare(str(tmp_path / "000000_0"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"u": ["i"]}
    refused(tmp_path, "x.csv", b"PK\x03\x04 and so on", "a zip archive or an Excel workbook")


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("User_ID,item_id", ["'User_ID' differs in letter case or blanks only", "--columns.user 'User_ID'"]),
        (" user_id,item_id", ["' user_id' differs", "--columns.user ' user_id'"]),
        ("user_id ,item_id", ["--columns.user 'user_id '"]),
        ("user_id, item_id", ["no column 'item_id'", "--columns.item ' item_id'"]),
        ("user_id;item_id", ["separated by ';'", "--separator ';'"]),
        ("user_id\titem_id", ["separated by '\\t'", "--separator 'tab'"]),
        ("user_id|item_id", ["--separator '|'"]),
        ('"user_id";"item_id"', ["--separator ';'"]),
        ("ann,a", ["it has ann, a", "--columns.user"]),
        ("196,242", ["its first line holds values, not names", "--header"]),
        ("2020-01-01 00:00:00,b7", ["its first line holds values, not names"]),
        ("user_id,item_id,user_id", ["two columns called 'user_id'"]),
        ('"user_id",item_id,"user_id"', ["two columns called 'user_id'"]),
    ],
)
def test_the_cause_of_a_missing_column_is_named(header: str, parts: list[str], tmp_path: Path) -> None:
    separator = next(character for character in ",;\t|" if character in header)
    rows = "".join(separator.join([f"u{n}", f"i{n}", "x"][: header.count(separator) + 1]) + "\n" for n in range(3))
    refused(tmp_path, "x.csv", f"{header}\n{rows}", *parts)


def test_quoted_headers(tmp_path: Path) -> None:
    assert read(tmp_path, "x.csv", '"user_id","item_id"\n"ann","a, b"\n"ann","say ""hi"""\n') == {"ann": ["a, b", 'say "hi"']}
    refused(tmp_path, "x.tsv", '"user_id"\t"item_id"\n"u"\t"i"\n', "is enclosed in quotes", "--format csv --separator tab")
    text = '"user_id"\t"item_id"\n"u"\t"i"\n'
    assert read(tmp_path, "x.tsv", text, format="csv", separator="tab") == {"u": ["i"]}


@pytest.mark.parametrize("separator", [";", "|", "::", "tab", "space", ",", "\\t", "^"])
def test_separators(separator: str, tmp_path: Path) -> None:
    character = {"tab": "\t", "\\t": "\t", "space": " "}.get(separator, separator)
    for name in ("x.csv", "x.txt", "x.dat", "x.log.gz"):
        assert read(tmp_path, name, BASIC.replace(",", character), separator=separator) == READ


@pytest.mark.parametrize("quote", ["user_id", "who"])
def test_parquet_columns_need_their_exact_names(quote: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({quote.upper(): ["u"], "item_id": ["i"]}), tmp_path / "x.parquet")
    with pytest.raises(LaresError, match=re.escape(f"it has {quote.upper()}, item_id")):
        prepare(str(tmp_path / "x.parquet"), str(tmp_path / "out"))
    pq.write_table(pa.table([["u"], ["v"], ["i"]], names=["user_id", "user_id", "item_id"]), tmp_path / "x.parquet")
    with pytest.raises(LaresError, match="two columns called 'user_id'"):
        prepare(str(tmp_path / "x.parquet"), str(tmp_path / "out"))


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    odd = pa.array([[{"a": 1}], None], pa.list_(pa.struct([("a", pa.int64())])))
    late = pa.array([2**62, 2**62], pa.timestamp("us"))
    table = {"user_id": ["u", "u"], "item_id": ["a", "b"], "odd": odd, "late": late, "index": [1, 2]}
    assert read_columns(tmp_path, table) == {"u": ["a", "b"]}


# ---------------------------------------------------------------- folders


def folder(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_folders_of_text(tmp_path: Path) -> None:
    log = folder(
        tmp_path / "log",
        {
            "2020/01.csv": "user_id,item_id\nu,a\n",
            "2020/02.csv": "item_id,user_id\nb,u\n",
            "2021/01.csv": "user_id,item_id\n",
            "2021/02.csv": "",
            "2021/03.csv": "user_id,item_id\nu,c\n",
            "_SUCCESS": "",
            ".hidden.csv": "nothing\n",
            "_temporary/0/x.csv": "nothing\n",
            "README.md": "a log",
        },
    )
    prepare(str(log), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"u": ["a", "b", "c"]}
    (log / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(LaresError, match=r"files of several formats \(csv, parquet\).*--format"):
        prepare(str(log), str(tmp_path / "other"))
    prepare(str(log), str(tmp_path / "other"), format="csv")
    assert sequences(tmp_path / "other") == {"u": ["a", "b", "c"]}


def test_partitions_are_columns(tmp_path: Path) -> None:
    """Ids keep leading zeros, escaped characters are decoded, and a column of the file takes precedence."""
    log = folder(
        tmp_path / "log",
        {
            "user_id=007/x.csv": "item_id\na\n",
            "user_id=7/x.csv": "item_id\na\nb\n",
            "user_id=a%2Fb %C3%AB/x.csv": "item_id\nc\n",
            "user_id=own/x.csv": "user_id,item_id\nmine,d\n",
        },
    )
    prepare(str(log), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"007": ["a"], "7": ["a", "b"], "a/b ë": ["c"], "mine": ["d"]}
    folder(log, {"user_id=__HIVE_DEFAULT_PARTITION__/x.csv": "item_id\na\n"})
    with pytest.raises(LaresError, match="data row 1 has no 'user_id'"):
        prepare(str(log), str(tmp_path / "other"))
    days = folder(tmp_path / "days", {f"day=2020-01-0{day}/x.csv": f"user_id,item_id\nu,i{day}\n" for day in (3, 1, 2)})
    prepare(str(days), str(tmp_path / "days-out"), Columns(time="day"))
    assert sequences(tmp_path / "days-out") == {"u": ["i1", "i2", "i3"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"_delta_log/0.json": "{}", "x.parquet": ""}, "a Delta Lake table"),
        ({"metadata/version-hint.text": "1", "data/x.parquet": ""}, "an? Iceberg table"),
        ({"notes.md": ""}, "found notes.md"),
        ({}, "found none"),
        ({"a.csv": "user_id,item_id\nu,i\n", "b.csv": "user,item_id\nu,i\n"}, "b.csv: no column 'user_id'"),
        ({"a.csv": "user_id,item_id\n"}, "no interactions in it"),
        ({"a.csv": BASIC, "a.csv.gz": BASIC}, "a.csv and .*a.csv.gz have the same name"),
        ({"a.parquet": ""}, "a.parquet: empty, as after a write that failed"),
    ],
)
def test_folders_that_are_not_a_log_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(LaresError, match=message):
        prepare(str(folder(tmp_path / "log", files)), str(tmp_path / "out"))


def test_parts_may_have_numbers_of_several_types(tmp_path: Path) -> None:
    """As pandas writes a column of which only some parts have missing values."""
    (tmp_path / "log").mkdir()
    for part, kind in enumerate((pa.int64(), pa.float64(), pa.int32(), pa.decimal128(20, 0))):
        ids = pa.array([decimal.Decimal(5), decimal.Decimal(6)]).cast(kind)
        pq.write_table(pa.table({"user_id": ids, "item_id": ids}), tmp_path / "log" / f"{part}.parquet")
    prepare(str(tmp_path / "log"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {5: [5] * 4, 6: [6] * 4}


# ---------------------------------------------------------------- from a log to training


def test_users_with_three_items_each(tmp_path: Path) -> None:
    read(tmp_path, "x.txt", "1 a b c\n2 b c a\n3 c a b\n")
    assert SequenceDataset.load(tmp_path / "out").users == 3
    with pytest.raises(LaresError, match="last two items are held out") as caught:
        SequenceDataModule(str(tmp_path / "out")).setup("fit")
    assert "four items or more, or with exactly two" in str(caught.value)
    read(tmp_path, "x.txt", "1 a b c\n2 b c\n3 c a b d\n")
    assert len(SequenceDataset.load(tmp_path / "out").training_instances) == 2
    SequenceDataModule(str(tmp_path / "out")).setup("fit")
