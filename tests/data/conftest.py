import pytest

from tests.data.parts import RANKS, FolderDataset, PooledPixelsSource, make_split


@pytest.fixture
def source() -> PooledPixelsSource:
    return PooledPixelsSource()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> FolderDataset:
    folder = tmp_path_factory.mktemp("pictures")
    return FolderDataset(
        {
            "train": make_split(folder, "train", RANKS * 3),
            "validation": make_split(folder, "validation", RANKS),
            "test": make_split(folder, "test", RANKS[2:]),
        }
    )
