"""Tables as spreadsheets, pandas, annotation tools and other systems write them: the right rows, or one message."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2ifb.config.errors import ConfigError
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.rankings import read_bytes
from t2ifb.score import _read_pairs
from tests.data.parts import encoded_picture

COLUMNS = ("prompt", "image", "rank", "split")
NAMES = ["img/000_0.png", "img/000_1.png", "img/001_0.png", "img/001_1.png"]
PROMPTS = ["a “green” circle", "a “green” circle", "a blue star, on gray", "a blue star, on gray"]
Table = Sequence[Sequence[object]]


def table(
    names: Sequence[str] = NAMES, ranks: Sequence[object] = (1, 2, 2, 1), prompts: Sequence[str] = PROMPTS
) -> Table:
    """Two rankings of two images."""
    return [COLUMNS, *([*row, "train"] for row in zip(prompts, names, ranks, strict=True))]


def text(rows: Table, delimiter: str = ",", end: str = "\r\n") -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator=end).writerows(rows)
    return buffer.getvalue()


def objects(rows: Table) -> list[dict[str, object]]:
    return [dict(zip(map(str, rows[0]), row, strict=True)) for row in rows[1:]]


def parquet(rows: Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(objects(rows)), buffer)
    return buffer.getvalue()


def lines(rows: Table) -> str:
    return "\n".join(json.dumps(each) for each in objects(rows))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "cache"))
    (tmp_path / "img").mkdir()
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(encoded_picture(number, "PNG"))
    return tmp_path


def both(folder: Path, name: str) -> list[str]:
    """What rankings and `score pairs=` say about a table; nothing if they read the right rows."""
    messages = []
    try:
        rankings = OwnRankings(folder).rankings("train")
    except ValueError as error:
        messages.append(str(error))
    else:
        assert [r.prompt for r in rankings] == PROMPTS[::2]
        assert [r.ranks for r in rankings] == [(1, 2), (2, 1)]
        assert [image for r in rankings for image in r.images] == [folder / name for name in NAMES]
    try:
        pairs = _read_pairs(folder / name)
    except ConfigError as error:
        messages.append(str(error).removeprefix("pairs: "))
    else:
        assert pairs == [(folder / name, prompt) for name, prompt in zip(NAMES, PROMPTS, strict=True)]
    return messages


READ: dict[str, tuple[str, Callable[[], str | bytes]]] = {
    "semicolons": ("rankings.csv", lambda: text(table(), ";")),
    "line ends of old": ("rankings.csv", lambda: text(table(), ";", "\r")),
    "tabs": ("rankings.csv", lambda: text(table(), "\t")),
    "tsv": ("rankings.tsv", lambda: text(table(), "\t")),
    "byte order mark": ("rankings.csv", lambda: "\ufeff" + text(table(), ";")),
    "capital names": ("Rankings.CSV", lambda: text(table()).replace("prompt,image,rank", "Prompt,IMAGE, Rank")),
    "windows paths": ("rankings.csv", lambda: text(table([name.replace("/", "\\") for name in NAMES]))),
    "a dot before": ("rankings.csv", lambda: text(table([f".\\{name}".replace("/", "\\") for name in NAMES]))),
    "float ranks": ("rankings.csv", lambda: text(table(ranks=("1.0", "2.0", "2.0", "1.0")))),
    "empty rows": ("rankings.csv", lambda: text([*table(), ("",) * 4, ()])),
    "json": ("rankings.json", lambda: "\ufeff" + json.dumps(objects(table()))),
    "float ranks in json": ("rankings.json", lambda: json.dumps(objects(table(ranks=(1.0, 2.0, 2.0, 1.0))))),
    "json lines": ("rankings.jsonl", lambda: lines(table()) + "\n\n"),
    "json lines with a byte order mark": ("RANKINGS.JSONL", lambda: "\ufeff" + lines(table())),
    "parquet": ("rankings.parquet", lambda: parquet(table())),
    "parquet of floats": ("rankings.Parquet", lambda: parquet(table(ranks=(1.0, 2.0, 2.0, 1.0)))),
}


@pytest.mark.parametrize("case", READ)
def test_both_commands_read_the_same_rows(folder: Path, case: str) -> None:
    name, content = READ[case]
    made = content()
    (folder / name).write_bytes(made if isinstance(made, bytes) else made.encode())
    assert both(folder, name) == []


REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "cp1252": ("rankings.csv", text(table(), ";").encode("cp1252"), ", line 2: the text is not in UTF-8 (byte 0x93)"),
    "utf-16": ("rankings.csv", text(table(), "\t").encode("utf-16"), ", line 1: the text is in UTF-16; save the file"),
    "utf-16 without a mark": ("rankings.csv", text(table()).encode("utf-16-le"), "line 1: the text is in UTF-16; save"),
    "utf-16 json": ("rankings.json", json.dumps(objects(table())).encode("utf-16"), "UTF-16; save it as UTF-8"),
    "cp1252 json lines": ("rankings.jsonl", b'\n{"prompt": "caf\xe9"}', ", line 2: the text is not in UTF-8"),
    "a comma": (
        "rankings.csv",
        "prompt,image,rank\na, b,i.png,1\n",
        "line 2 has more cells than there are columns; put",
    ),
    "a short row": ("rankings.csv", "prompt,image,rank\na,i.png,1\na\n", "line 3 has only 1 of 3 cells; the columns"),
    "an open quotation mark": (
        *("rankings.csv", 'image,prompt,rank\na.png,"a\nb.png,b,1\n'),
        "line 2: unbalanced quotation marks",
    ),
    "quotation marks inside": (
        *("rankings.csv", 'image,prompt,rank\na.png,b,1\na.png,"a" b,1\n'),
        "line 3: unbalanced quotation marks",
    ),
    "a column twice": ("rankings.csv", "prompt,image,rank,Prompt\na,b,1,c\n", "line 1: more than one column prompt"),
    "a key twice": ("rankings.json", '[{"prompt": "a", "Prompt": "b"}]', "two keys differ only in letter case"),
    "a list in json lines": ("rankings.jsonl", json.dumps(objects(table())), "line 1: expected an object with a key"),
    "lines in json": ("rankings.json", lines(table()), "a file with one object per line must end with .jsonl"),
    "broken json lines": ("rankings.jsonl", lines(table()) + "\n{", "line 5 is not JSON"),
    "not parquet": ("rankings.parquet", b"PAR1", "is not a Parquet file"),
    "a list of prompts": (
        *("rankings.json", '[{"prompt": ["a"], "image": "i.png", "rank": 1}]'),
        "entry 0: prompt must be a text or a number, found list",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_commands_give_the_same_message(folder: Path, case: str) -> None:
    name, content, expected = REFUSED[case]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for message in (messages := both(folder, name)):
        assert f"{folder / name}" in message
        assert expected in message
        assert "\n" not in message
    assert len(messages) == 2
    if "columns are" not in expected:
        assert len(set(messages)) == 1


UPPER = [name.upper() for name in NAMES]
APART = ["img/cafe\u0301_0.png", "img/cafe\u0301_1.png"]
TOGETHER = ["img/caf\u00e9_0.png", "img/caf\u00e9_1.png", "img/000_0.png", "img/000_1.png"]
ABSENT: dict[str, tuple[Sequence[str], str]] = {
    "urls": (
        ["https://example.org/" + "x" * 300, *NAMES[1:3], "s3://bucket/a.png"],
        "line 2: 2 of 4 image names are URLs, such as https://example.org/xxx",
    ),
    "data urls": (["data:image/png;base64," + "x" * 5000, *NAMES[1:]], "line 2: 1 of 4 image names are URLs"),
    "letter case": (
        UPPER,
        "line 2: 4 of 4 image names differ from the files in letter case, such as IMG/000_0.PNG for 000_0.png",
    ),
    "unicode form": (TOGETHER, "line 2: 2 of 4 image names differ from the files by the Unicode form of their letters"),
    "another machine": (
        ["C:\\Users\\me\\0.png", "/home/nobody/1.png", *NAMES[2:]],
        "line 2: 2 of 4 image names are absolute paths that this machine does not have, such as C:\\Users\\me\\0.png",
    ),
    "one is missing": (
        ["img/000_0.jpg", *NAMES[1:]],
        "line 2: image img/000_0.jpg (did you mean '000_0.png'?) is missing",
    ),
    "a name that cannot be": (["img/\0.png", "x" * 3000, *NAMES[2:]], "is missing"),
}


@pytest.mark.parametrize("case", ABSENT)
def test_what_the_missing_images_have_in_common_is_said(folder: Path, case: str) -> None:
    names, expected = ABSENT[case]
    for name in APART:
        (folder / name).write_bytes(encoded_picture(0, "PNG"))
    (folder / "rankings.csv").write_text(text(table(names)))
    messages = both(folder, "rankings.csv")
    assert len(messages) == 2
    for message in messages:
        assert expected in message
        assert len(message) < 1000
    first = [message.split("\n", 1)[1] for message in messages]
    assert first[0] == first[1]


def test_many_missing_images_are_one_line(folder: Path) -> None:
    rows = [(f"prompt {n // 2}", f"imgs/{n}.png", 1 + n % 2, "train") for n in range(600)]
    (folder / "rankings.csv").write_text(text([COLUMNS, *rows]))
    with pytest.raises(ValueError, match="1 error in 300 of 300 rankings") as raised:
        OwnRankings(folder).rankings("train")
    assert "line 2: 600 of 600 image names name no file, such as imgs/0.png" in str(raised.value)


def test_many_equal_errors_are_one_line(folder: Path) -> None:
    (folder / "rankings.csv").write_text(text(table(prompts=("",) * 4)))
    with pytest.raises(ValueError, match="rankings.csv, line 2 and 3 more: empty prompt$"):
        OwnRankings(folder).rankings("train")
    with pytest.raises(ConfigError, match="rankings.csv, line 2 and 3 more: empty prompt$"):
        _read_pairs(folder / "rankings.csv")


def test_two_people_without_names_are_asked_for_them(folder: Path) -> None:
    twice = text([*table(), *table()[1:]])
    (folder / "rankings.csv").write_text(twice)
    expected = "line 2 and 1 more: the ranking has the same image twice; if several people ranked it, add a column"
    with pytest.raises(ValueError, match=expected):
        OwnRankings(folder).rankings("train")


def test_one_image_under_two_names_is_the_same_image(folder: Path) -> None:
    names = ["img/000_0.png", ".\\img\\000_0.png", *NAMES[2:]]
    (folder / "rankings.csv").write_text(text(table(names)))
    with pytest.raises(ValueError, match="line 2: the ranking has the same image twice"):
        OwnRankings(folder).rankings("train")


def test_other_files_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "pairs.xlsx").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"is not a supported table; expected .csv, .tsv, .json, .jsonl"):
        _read_pairs(tmp_path / "pairs.xlsx")


PAIRS = "caption,image_a,image_b,label\na circle,img/000_0.png,img/000_1.png,0\n"


def test_pairs_are_read_as_rankings_but_not_scored(folder: Path) -> None:
    (folder / "rankings.csv").write_text(PAIRS)
    (ranking,) = OwnRankings(folder, shares={"train": 1.0}).rankings("train")
    assert (ranking.prompt, ranking.ranks) == ("a circle", (1, 2))
    with pytest.raises(
        ConfigError, match=r"line 1: this looks like a table of pairs \(caption, image_a, image_b, label\)"
    ):
        _read_pairs(folder / "rankings.csv")


def test_a_row_of_json_may_leave_out_what_others_have(folder: Path) -> None:
    pair = {"prompt": "a", "image_a": NAMES[0], "image_b": NAMES[1]}
    (folder / "rankings.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps({**pair, "label": "b"}))
    (ranking,) = OwnRankings(folder, shares={"train": 1.0}).rankings("train")
    assert ranking.ranks == (2, 1)


def test_pairs_with_unknown_names_can_be_named(folder: Path) -> None:
    (folder / "rankings.csv").write_text(f"prompt,photo_a,photo_b,label\na,{NAMES[0]},{NAMES[1]},a\n")
    with pytest.raises(ValueError, match=r"its images are not known; name their columns with columns=\{first: …"):
        OwnRankings(folder).rankings("train")
    given = {"first": "photo_a", "second": "photo_b"}
    assert len(OwnRankings(folder, given, shares={"train": 1.0}).rankings("train")) == 1
    (folder / "rankings.csv").write_text("prompt,picture1,picture2,label\n")
    with pytest.raises(ValueError, match=r"or two images in each row: name their columns with columns="):
        OwnRankings(folder).rankings("train")


def test_images_in_parquet_are_ranked_and_scored(folder: Path) -> None:
    cells = [{"bytes": encoded_picture(number, "PNG"), "path": None} for number in (0, 1)]
    rows = [COLUMNS, ("a", cells[0], 1, "train"), ("a", cells[1], 2, "train")]
    (folder / "rankings.parquet").write_bytes(parquet(rows))
    (ranking,) = OwnRankings(folder).rankings("train")
    assert [read_bytes(image) for image in ranking.images] == [cell["bytes"] for cell in cells]
    assert [image for image, _ in _read_pairs(folder / "rankings.parquet")] == list(ranking.images)
