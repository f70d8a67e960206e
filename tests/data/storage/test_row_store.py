"""A table on disk whose indexed rows are always complete."""

from pathlib import Path

import numpy as np
import pytest

from t2ifb.data.content_keys import KEY_BYTES
from t2ifb.data.storage.row_store import HEADER_BYTES, RowStore


def keys(*numbers: int) -> list[bytes]:
    return [bytes([number]) * KEY_BYTES for number in numbers]


def rows(*numbers: int, width: int = 3) -> np.ndarray:
    return np.array([[number + column / 10 for column in range(width)] for number in numbers], np.float32)


@pytest.fixture
def store(tmp_path: Path) -> RowStore:
    return RowStore(tmp_path / "cache", "images", "<f4")


def test_an_empty_table_has_no_rows_and_makes_no_file(store: RowStore) -> None:
    assert len(store) == 0
    assert store.table().shape == (0, 0)
    assert keys(1)[0] not in store
    assert not store.rows_path.parent.exists()


def test_rows_come_back_by_their_keys_also_in_another_process(store: RowStore) -> None:
    store.append(keys(1, 2), rows(1, 2))
    store.append(keys(7), rows(7))
    for table in (store, RowStore(store.rows_path.parent, "images", "<f4")):
        assert len(table) == 3 and table.width == 3
        assert [table.row(key) for key in keys(1, 2, 7)] == [0, 1, 2]
        np.testing.assert_array_equal(table.table(), rows(1, 2, 7))
        with pytest.raises(KeyError):
            table.row(keys(3)[0])
    np.testing.assert_array_equal(np.load(store.rows_path), rows(1, 2, 7))
    with pytest.raises(ValueError, match="read-only"):
        store.table()[0] = 0


def test_rows_of_others_are_seen_after_a_reload(store: RowStore) -> None:
    other = RowStore(store.rows_path.parent, "images", "<f4")
    other.append(keys(1), rows(1))
    assert len(store) == 0
    store.reload()
    store.append(keys(2), rows(2))
    assert len(other) == 1
    other.reload()
    np.testing.assert_array_equal(other.table(), rows(1, 2))


def test_rows_beyond_the_index_are_overwritten(store: RowStore) -> None:
    store.append(keys(1), rows(1))
    with store.rows_path.open("ab") as file:
        file.write(b"torn")
    again = RowStore(store.rows_path.parent, "images", "<f4")
    assert len(again) == 1
    again.append(keys(2), rows(2))
    np.testing.assert_array_equal(np.load(store.rows_path), rows(1, 2))


@pytest.mark.parametrize("lost", [1, 12, 13, 24])
def test_of_a_table_that_was_cut_the_whole_rows_are_kept(store: RowStore, lost: int) -> None:
    store.append(keys(1, 2, 3), rows(1, 2, 3))
    store.rows_path.write_bytes(store.rows_path.read_bytes()[:-lost])
    left = RowStore(store.rows_path.parent, "images", "<f4")
    assert len(left) == 3 - -(-lost // 12)
    np.testing.assert_array_equal(left.table(), rows(*range(1, len(left) + 1)))


@pytest.mark.parametrize("file", ["rows", "index"])
@pytest.mark.parametrize("content", [b"", b"no table", bytes(HEADER_BYTES + 36)])
def test_a_damaged_table_is_said_and_made_anew(
    store: RowStore, file: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(keys(1, 2), rows(1, 2))
    (store.rows_path if file == "rows" else store.index_path).write_bytes(content)
    again = RowStore(store.rows_path.parent, "images", "<f4")
    assert len(again) == 0
    assert f"{store.rows_path} is damaged" in caplog.text
    again.append(keys(3), rows(3))
    np.testing.assert_array_equal(RowStore(store.rows_path.parent, "images", "<f4").table(), rows(3))


def test_numbers_of_another_type_are_not_believed(store: RowStore, caplog: pytest.LogCaptureFixture) -> None:
    store.append(keys(1), rows(1))
    assert len(RowStore(store.rows_path.parent, "images", "<f2")) == 0
    assert "unexpected type or shape" in caplog.text


def test_rows_of_another_width_are_refused(store: RowStore) -> None:
    store.append(keys(1), rows(1))
    with pytest.raises(ValueError, match=r"has rows of 3 numbers, but the encoder returns 4: delete"):
        store.append(keys(2), rows(2, width=4))
    np.testing.assert_array_equal(RowStore(store.rows_path.parent, "images", "<f4").table(), rows(1))


def test_numbers_are_stored_in_the_type_of_the_table(tmp_path: Path) -> None:
    half = RowStore(tmp_path, "images", "<f2")
    half.append(keys(1), np.array([[1 / 3, 2.5, 1.0]], np.float32))
    np.testing.assert_array_equal(half.table(), np.array([[1 / 3, 2.5, 1.0]], np.float16))
