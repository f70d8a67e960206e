"""Parquet files and WebDataset tars through the `datasets` library."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2ifb.data.rankings import open_image
from t2ifb.data.storage.columnar import ColumnImage, read_columns
from tests.data.parts import encoded_picture, picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "cache"))


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_samples(path: Path, members: dict[str, bytes | dict[str, object]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(encoded)
            tar.addfile(info, io.BytesIO(encoded))
    return path


def test_columns_of_images_are_opened_on_demand(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(encoded_picture(2, "PNG"))
    names = ("there.png", "../x.png")
    cells = [{"bytes": encoded_picture(1), "path": None}, *({"bytes": None, "path": name} for name in names)]
    rows = [{"Caption": "a cat", "image": cell, "jpg": encoded_picture(3, "PNG")} for cell in cells]
    path = write_parquet(tmp_path / "some.parquet", rows)
    columns, entries = read_columns(path)
    assert columns == ["caption", "image", "jpg"]
    (place, first), (_, second), (_, third) = entries
    assert (place, first["Caption"]) == (f"{path}, row 0", "a cat")
    assert first["image"].read() == encoded_picture(1)
    assert open_image(second["image"]).tobytes() == picture(2).tobytes()
    assert first["jpg"].read() == encoded_picture(3, "PNG")
    assert str(first["image"]) == f"{path}, row 0, image"
    with pytest.raises(ValueError, match="outside the table's folder"):
        third["image"].read()
    assert len({first["image"], second["image"], first["jpg"]}) == 3
    (_, again), *_ = read_columns(path)[1]
    assert again["image"] == first["image"] and again["image"].identity() == first["image"].identity()
    named = second["image"]
    before = named.identity()
    assert (named.file, first["image"].file) == (tmp_path / "there.png", None)
    (tmp_path / "there.png").write_bytes(encoded_picture(4, "PNG") + b" ")
    assert named.identity() != before


def test_samples_of_a_tar(tmp_path: Path) -> None:
    pairs = {
        "000.0.png": encoded_picture(1, "PNG"),
        "000.1.png": encoded_picture(2, "PNG"),
        "000.json": {"caption": "x"},
    }
    columns, entries = read_columns(write_samples(tmp_path / "some.tar", pairs))
    assert {"0.png", "1.png", "caption"} <= set(columns)
    ((_, cells),) = entries
    assert (cells["caption"], cells["prompt_id"]) == ("x", "000")
    assert isinstance(cells["1.png"], ColumnImage) and cells["1.png"].read() == encoded_picture(2, "PNG")


def test_json_in_a_tar_keeps_its_types(tmp_path: Path) -> None:
    """The library takes types from the first five samples, and makes 0 of 0.5 after five whole numbers."""
    labels = [0, 1, 0, 1, 0, 0.5, "tie", None]
    samples: dict[str, bytes | dict[str, object]] = {}
    for number, label in enumerate(labels):
        more = {"weight": 1.9} if number > 5 else {}
        samples[f"{number}.png"] = encoded_picture(number, "PNG")
        samples[f"{number}.json"] = {"label": label, "n": {"m": number}, **more}
    columns, entries = read_columns(write_samples(tmp_path / "some.tar", samples))
    assert {"png", "label", "weight"} <= set(columns)
    cells = [each for _, each in entries]
    assert [each["label"] for each in cells] == labels and type(cells[0]["label"]) is int
    assert [each.get("weight") for each in cells[5:]] == [None, 1.9, 1.9]
    assert cells[3]["n"] == {"m": 3}


@pytest.mark.parametrize(("name", "kind"), [("broken.parquet", "Parquet file"), ("broken.tar", "WebDataset tar")])
def test_other_files_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"{name} is not a {kind}: ") as raised:
        read_columns(tmp_path / name)
    assert "\n" not in str(raised.value)
