"""Reading tables and writing them with scores: every format, what no format may alter, and every refusal."""

import csv
import io
import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.columns import DOCUMENT
from segue.errors import InputError
from segue.results import write_scores
from segue.tables import format_of, read_table

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def read(data, format, **options):
    return read_table(io.BytesIO(data), "file", format=format, **options)


def texts(data, format, **options):
    return [row.texts for row in read(data, format, **options).rows]


def rewrite(data, format, output_format, *, score=0.25, **options):
    """Read `data`, give every row the same score, and return what is written."""
    writing = {key: options.pop(key) for key in ("scores_only",) if key in options}
    header = options.get("header", False)
    table = read(data, format, **options)
    out = io.BytesIO()
    scored = ((row, (score,)) for row in table.rows)
    write_scores(out, table, scored, ["score"], format=output_format, header=header, **writing)
    return out.getvalue()


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("pairs.tsv", None, "tsv"),
        ("-", None, "tsv"),
        ("/dev/fd/63", None, "tsv"),
        ("v1.2/pairs.CSV", None, "csv"),
        ("pairs.ndjson", None, "jsonl"),
        ("pairs.csv", "tsv", "tsv"),
        ("pairs.parquet", "jsonl", "jsonl"),
    ],
)
def test_the_ending_names_the_format_unless_one_is_given(path, given, expected):
    assert format_of(path, given) == expected


def test_an_unknown_ending_is_refused_where_nothing_else_says():
    assert format_of("scores.out", otherwise="csv") == "csv"
    with pytest.raises(InputError, match=r"pairs\.parquet: \.parquet names no format"):
        format_of("pairs.parquet")


@pytest.mark.parametrize(
    ("data", "format", "options", "expected"),
    [
        (b"a\tb\nc\td\n", "tsv", {}, [("a", "b"), ("c", "d")]),
        (b"a\tb\r\nc\td", "tsv", {}, [("a", "b"), ("c", "d")]),
        (b'"a\tb"\n', "tsv", {}, [('"a', 'b"')]),
        (b"\xef\xbb\xbfa\tb\n", "tsv", {}, [("a", "b")]),
        (b"a\tb\n\xef\xbb\xbfc\td\r\r\n", "tsv", {}, [("a", "b"), ("\ufeffc", "d\r")]),
        (b"\t\n", "tsv", {}, [("", "")]),
        (b"a\x0bb\x0c\xc2\x85\tb\r \n", "tsv", {}, [("a\x0bb\x0c\x85", "b\r ")]),
        (b"a\tb\n\n\n", "tsv", {}, [("a", "b")]),
        (b"x\ty\na\tb\n", "tsv", {"header": True}, [("a", "b")]),
        (b"1\ta\tb\n", "tsv", {"columns": "3,2"}, [("b", "a")]),
        (b"id\tb\ta\n1\tB\tA\n", "tsv", {"header": True}, [("A", "B")]),
        (b"x,y\na,b\n", "csv", {}, [("a", "b")]),
        (b'x,y\r\n"a,\n1","say ""hi"""\r\n', "csv", {}, [("a,\n1", 'say "hi"')]),
        (b"\xef\xbb\xbfpassage,id,query\na,1,b\n", "csv", {}, [("b", "a")]),
        (b"x,y\na,b\n", "csv", {"columns": "y, x"}, [("b", "a")]),
        (b"x,y,z\na,b,c\n", "csv", {"columns": "3,x"}, [("c", "a")]),
        (b"2,1\na,b\n", "csv", {"columns": "1,2"}, [("b", "a")]),
        (b"x,y\na,b\n\n", "csv", {}, [("a", "b")]),
        (b'{"b": "B", "a": "A", "id": 7}\n', "jsonl", {}, [("A", "B")]),
        (b'{"q": "Q", "p": "P"}\r\n\n', "jsonl", {"columns": "q,p"}, [("Q", "P")]),
        (b'["A", "B"]\n["C", "D"]', "jsonl", {}, [("A", "B"), ("C", "D")]),
        (b'["\\ud83d\\ude00", "\\\\ud83d"]\n', "jsonl", {}, [("😀", "\\ud83d")]),
        (b'[7, "A", "B"]\n', "jsonl", {"columns": "2,3"}, [("A", "B")]),
        (b'{"a": "\\u00e9\\ttab\\nline", "b": ""}', "jsonl", {}, [("é\ttab\nline", "")]),
        (b"one\n\ntwo\n\n", "tsv", {"known": DOCUMENT}, [("one",), ("",), ("two",), ("",)]),
        (b"\none\n", "tsv", {"known": DOCUMENT}, [("",), ("one",)]),
        (b"a\tx\nb\ty\n\n", "tsv", {"known": DOCUMENT, "columns": "1"}, [("a",), ("b",)]),
        (b'x\n""\n', "csv", {"known": DOCUMENT}, [("",)]),
        (b'{"text": "t", "id": 1}', "jsonl", {"known": DOCUMENT}, [("t",)]),
    ],
)
def test_reading(data, format, options, expected):
    assert texts(data, format, **options) == expected


@pytest.mark.parametrize(("data", "format", "told"), [(b"a\tb\n", "tsv", 1), (b"a,b\nc,d\n", "csv", 0)])
def test_names_of_columns_are_suspected_only_where_texts_are_expected(caplog, data, format, told):
    texts(data, format)
    assert len(caplog.records) == told


@pytest.mark.parametrize("format", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize("data", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_empty_table_and_an_empty_output(format, data):
    table = read(data, format)
    assert (table.names, list(table.rows)) == ([], [])
    for output_format in ("tsv", "csv", "jsonl"):
        assert rewrite(data, format, output_format) == b""


@pytest.mark.parametrize(
    ("data", "format", "options", "message"),
    [
        (b"a\tb\na\n", "tsv", {}, "file:2: 1 column, expected 2"),
        (b"a\tb\na\tb\tc\n", "tsv", {}, "file:2: 3 columns, expected 2"),
        (b"a\tb\tc\n", "tsv", {}, "file:1: 3 columns: say with --columns"),
        (b"a\n", "tsv", {}, "file:1: 1 column, expected 2"),
        (b"a\tb\n\n\nc\td\n", "tsv", {}, "file:2: a blank line"),
        (b"a\tb\n", "tsv", {"columns": "1,3"}, "file:1: no column '3': there are 2 columns without names"),
        (b"a\tb\n", "tsv", {"columns": "0,1"}, "no column '0'"),
        (b"a\tb\n", "tsv", {"columns": "-1,1"}, "no column '-1'"),
        (b"a\tb\n", "tsv", {"columns": "x,y"}, "no column 'x'"),
        (b"a\tb\n", "tsv", {"columns": f"1,{'9' * 5000}"}, "no column '999"),
        (b"a\tb\n", "tsv", {"columns": "1"}, "columns: expected two names or numbers"),
        (b"a\tb\n", "tsv", {"columns": "1,2", "known": DOCUMENT}, "columns: expected one name or number"),
        (b"a\tb\na\t\xff\n", "tsv", {}, "file:2: not UTF-8: 0xff at byte 3"),
        (b"x,y\na,b\n\xe9,b\n", "csv", {}, "file:3: not UTF-8: 0xe9 at byte 1"),
        (b"id,x,y\n1,a,b\n", "csv", {}, r"file:1: 3 columns \(id, x, y\): say with --columns"),
        (b"x,y\na,b\n", "csv", {"columns": "x,z"}, "file:1: no column 'z': there are x, y"),
        (b"x,x,y\na,b,c\n", "csv", {"columns": "x,y"}, "file:1: 2 columns are called 'x': give a number"),
        (b"a,b,query,passage\n1,2,3,4\n", "csv", {}, "say with --columns"),
        (b'x,y\n"a\n1",b\nc\n', "csv", {}, "file:4: 1 column, expected 2"),
        (b'x,y\na,b\n"c\nd', "csv", {}, "file:3: not CSV: unexpected end of data"),
        (b'x,y\n"a"b,c\n', "csv", {}, "file:2: not CSV"),
        (b"x,y\n\na,b\n", "csv", {}, "file:2: a blank line"),
        (b'{"a": "A", "b": "B"}\n{"a": "A"}\n', "jsonl", {}, "file:2: no key 'b'"),
        (b'{"a": "A", "b": null}', "jsonl", {}, "file:1: b: expected a string, got null"),
        (b'{"a": "A", "b": 3}', "jsonl", {}, "file:1: b: expected a string, got a number"),
        (b'["A", true]', "jsonl", {}, "file:1: item 2: expected a string, got a boolean"),
        (b'["A", "B"]\n["A", "B", 1]', "jsonl", {}, "file:2: 3 columns, expected 2"),
        (b'["A", "B"]\n{"a": "A", "b": "B"}', "jsonl", {}, "file:2: expected an array, as on the first line"),
        (
            b'{"a": "A", "b": "B"}\n["A", "B"]',
            "jsonl",
            {},
            "file:2: expected an object, as on the first line",
        ),
        (b'{"a": "A", "b": "B"}\n[]', "jsonl", {}, "file:2: expected an object"),
        (b'["A", "\\uD83D"]', "jsonl", {}, "file:1: item 2: expected a string, got half a surrogate pair"),
        (b'{"a": "A"\n', "jsonl", {}, "file:1: not JSON: .* at column 10"),
        (b'["A", "B"]\n\xc2\xa0\n', "jsonl", {}, "file:2: not JSON"),
        (b'"A"', "jsonl", {}, "file:1: expected an object or an array, got a string"),
        (b"[" * 100_000, "jsonl", {}, "file:1: not readable as JSON"),
        (b"[" + b"1" * 5000 + b"]", "jsonl", {}, "file:1: not readable as JSON"),
        (b'{"q": "Q", "p": "P"}', "jsonl", {}, r"file:1: 2 columns \(q, p\): say with --columns"),
        (b'{"a": "A", "b": "B"}', "jsonl", {"columns": "1,2"}, "file:1: no column '1': there are a, b"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(data, format, options, message):
    with pytest.raises(InputError, match=message) as caught:
        texts(data, format, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_before_a_bad_line_come_first():
    rows = read(b"a\tb\nc\td\ne\n", "tsv").rows
    assert [next(rows).texts, next(rows).texts] == [("a", "b"), ("c", "d")]
    with pytest.raises(InputError, match="file:3"):
        next(rows)


def test_line_numbers_count_lines_of_the_file_also_where_records_span_several():
    data = b'x,y\n"a\n\n1",b\r\nc,"d\n"\ne,f\n'
    assert [row.line for row in read(data, "csv").rows] == [2, 5, 7]


def test_a_megabyte_in_a_cell_is_no_error():
    long = "x" * (1 << 20)
    for data, format in [
        (f"{long}\tb\n", "tsv"),
        (f'a,b\n"{long}",b\n', "csv"),
        (json.dumps([long, "b"]), "jsonl"),
    ]:
        assert texts(data.encode(), format) == [(long, "b")]


@pytest.mark.parametrize(
    ("data", "format", "output_format", "options", "expected"),
    [
        (b"a\tb\r\nc\td\n\n", "tsv", "tsv", {}, b"a\tb\t0.25\nc\td\t0.25\n"),
        (b"a\tb\n", "tsv", "tsv", {"scores_only": True}, b"0.25\n"),
        (b"x\ty\na\tb\n", "tsv", "tsv", {"header": True}, b"x\ty\tscore\na\tb\t0.25\n"),
        (b"7\tA\tB\n", "tsv", "csv", {"columns": "2,3"}, b"column_1,a,b,score\n7,A,B,0.25\n"),
        (b"A\tB\n", "tsv", "jsonl", {}, b'{"a": "A", "b": "B", "score": 0.25}\n'),
        (b"doc\n", "tsv", "jsonl", {"known": DOCUMENT}, b'{"text": "doc", "score": 0.25}\n'),
        (b"x,y\n", "csv", "csv", {}, b"x,y,score\n"),
        (b'x,y\n"a\r\n1","b,""c"\n', "csv", "csv", {}, b'x,y,score\n"a\r\n1","b,""c",0.25\n'),
        (b"x,y\na,b\n", "csv", "tsv", {}, b"a\tb\t0.25\n"),
        (b"x,y\na,b\n", "csv", "tsv", {"header": True}, b"x\ty\tscore\na\tb\t0.25\n"),
        (b"x,y\na,b\n", "csv", "csv", {"scores_only": True}, b"score\n0.25\n"),
        (b"x,y\na,b\n", "csv", "jsonl", {"scores_only": True}, b'{"score": 0.25}\n'),
        (b'x,y\n"a\n1",\xc3\xa9\n', "csv", "jsonl", {}, '{"x": "a\\n1", "y": "é", "score": 0.25}\n'.encode()),
        (
            b'{"a":"A","b":"B","n":[1e2,null]} \n',
            "jsonl",
            "csv",
            {},
            b'a,b,n,score\nA,B,"[100.0, null]",0.25\n',
        ),
        (b'["A", "B"]', "jsonl", "tsv", {}, b"A\tB\t0.25\n"),
        (b'["A","B" ]\n', "jsonl", "jsonl", {}, b'["A","B", 0.25]\n'),
    ],
)
def test_writing(data, format, output_format, options, expected):
    assert rewrite(data, format, output_format, **options) == expected


def test_jsonl_keeps_every_character_of_a_line():
    line = rb'{"a":"\u00e9","b" : "B","big":12345678901234567890.10,"a2":1E400,"half":"\ud800","d":1,"d":2 }'
    assert rewrite(line, "jsonl", "jsonl") == line[:-2] + b', "score": 0.25}\n'


@pytest.mark.parametrize(
    ("data", "format", "output_format", "message"),
    [
        (b'{"a": "x", "b": "B"}\n{"a": "x\\ty", "b": "B"}', "jsonl", "tsv", "file:2: a text holds a tab"),
        (b'x,y\n"a\nb",c\n', "csv", "tsv", "file:2: a text holds a line break"),
        (b"x,score,y\na,b,c\n", "csv", "csv", "file: has a column 'score' already"),
        (b'{"a": "A", "b": "B", "score": 1}', "jsonl", "jsonl", "file: has a column 'score' already"),
        (
            b'{"a": "A", "b": "B"}\n{"a": "", "b": "", "score": 1}',
            "jsonl",
            "jsonl",
            "file:2: has a column 'score'",
        ),
        (
            b'{"a": "A", "b": "B"}\n{"a": "", "b": "", "c": 1}',
            "jsonl",
            "csv",
            "file:2: 'c' is not a key of every",
        ),
        (b'{"a": "A", "b": "B", "c": "\\ud800"}', "jsonl", "csv", "file:1: half a surrogate pair"),
        (
            b'{"a": "A", "b": "B", "\\ud800": "C"}',
            "jsonl",
            "csv",
            "file: the columns' names: half a surrogate",
        ),
        (b"x,x\na,b\n", "csv", "jsonl", "file: two columns are called 'x'"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_not_altered(data, format, output_format, message):
    options = {"columns": "1,3"} if b"x,score" in data else {}
    with pytest.raises(InputError, match=message):
        rewrite(data, format, output_format, **options)


def test_scores_have_the_fewest_digits_that_give_the_same_float32():
    values = np.random.default_rng(0).random(1000, dtype=np.float32) ** 9
    table = read(b"a\tb\n" * 1000, "tsv")
    out = io.BytesIO()
    scored = ((row, (value,)) for row, value in zip(table.rows, values, strict=True))
    write_scores(out, table, scored, ["score"], format="jsonl", scores_only=True)
    written = [json.loads(line)["score"] for line in out.getvalue().splitlines()]
    np.testing.assert_array_equal(np.float32(written), values)
    assert len(out.getvalue()) < 1000 * len('{"score": 1.23456789e-05}\n')


@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), max_size=5))
def test_any_text_survives_csv_and_jsonl(rows):
    source = io.StringIO(newline="")
    csv.writer(source).writerows([["a", "id", "b"], *rows])
    scored = rewrite(source.getvalue().encode(), "csv", "csv", score=1.5)
    assert list(csv.reader(io.StringIO(scored.decode(), newline="")))[1:] == [[*row, "1.5"] for row in rows]
    lines = rewrite(source.getvalue().encode(), "csv", "jsonl", score=1.5).split(b"\n")[:-1]
    assert [list(json.loads(line).values()) for line in lines] == [[*row, 1.5] for row in rows]


@pytest.mark.parametrize(
    ("format", "line"),
    [("tsv", b"%s\ttext\n"), ("csv", b'%s,"te\nxt"\n'), ("jsonl", b'["%s", "text"]\n')],
)
def test_reading_and_writing_hold_one_row(format, line):
    class Source(io.RawIOBase):
        """Makes its 2,000 lines of a kilobyte as they are read, so that the source itself takes no memory."""

        left = 2000

        def readable(self):
            return True

        def readinto(self, into):
            made = line % (b"x" * 1000) if self.left else b""
            self.left -= 1
            into[: len(made)] = made
            return len(made)

    table = read_table(io.BufferedReader(Source()), "file", format=format)
    tracemalloc.start()
    with open(os.devnull, "wb") as out:
        write_scores(out, table, ((row, (0.5,)) for row in table.rows), ["score"], format=format)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000  # bytes; the file has two million
