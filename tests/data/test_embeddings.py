import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from t2ifb.data import embeddings
from t2ifb.data.embeddings import EmbeddingCache, Storage
from t2ifb.data.images import load_image
from tests.data.parts import PooledPixels, PooledPixelsSource, picture

CHECKOUT = Path(__file__).resolve().parents[2]
PROMPTS = [f"prompt {i}" for i in range(9)]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return make_images(tmp_path / "images", 20)


def make_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i:02}.png" for i in range(count)]
    for i, path in enumerate(paths):
        picture(i, size=(8, 8) if i % 4 else (9, 7)).save(path)
    return paths


def expected(images: list[Path]) -> Tensor:
    return torch.cat([PooledPixels(0).encode_images(load_image(image)[None]) for image in images])


@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_embeddings_come_back_in_order(
    tmp_path: Path, source: PooledPixelsSource, images: list[Path], storage: Storage, tolerance: float
) -> None:
    cache = EmbeddingCache(tmp_path / "cache", source, storage, batch_size=3)
    report = cache.fill(images, PROMPTS)
    assert (report.encoded, report.reused) == (29, 0)
    wanted = [images[5], images[0], images[5]]
    gathered = cache.images(wanted).gather()
    assert gathered.dtype == torch.float32
    torch.testing.assert_close(gathered, expected(wanted), atol=tolerance, rtol=0)
    prompts = cache.prompts(PROMPTS[::-1]).gather(np.array([0, 8]))
    torch.testing.assert_close(
        prompts, PooledPixels(0).encode_prompts([PROMPTS[8], PROMPTS[0]]), atol=tolerance, rtol=0
    )


def test_rows_are_a_readable_npy_file(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    cache = EmbeddingCache(tmp_path / "cache", source)
    cache.fill(images[:7], [])
    cache.fill(images, [])
    rows = np.load(cache.folder / "images.npy", mmap_mode="r")
    assert rows.shape == (20, 6)
    np.testing.assert_array_equal(rows, cache.images(images).table)


def test_the_same_content_is_encoded_once(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(images[0].read_bytes())
    cache = EmbeddingCache(tmp_path / "cache", source)
    assert cache.fill([*images, copy, images[0]], [*PROMPTS, PROMPTS[0]]).encoded == 29
    embeddings = cache.images([images[0], copy])
    assert embeddings.rows[0] == embeddings.rows[1]


def test_a_changed_file_is_another_image(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    EmbeddingCache(tmp_path / "cache", source).fill(images, [])
    picture(1000).save(images[0])
    cache = EmbeddingCache(tmp_path / "cache", source)
    assert cache.fill(images, []).encoded == 1
    torch.testing.assert_close(cache.images(images).gather(), expected(images))


def test_a_second_run_neither_builds_the_encoder_nor_reads_the_images(
    tmp_path: Path, source: PooledPixelsSource, images: list[Path]
) -> None:
    EmbeddingCache(tmp_path / "cache", source).fill(images, PROMPTS)
    for image in images:  # other content behind the same path, time and size: only reading it would tell
        status = image.stat()
        image.write_bytes(bytes(status.st_size))
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    cache = EmbeddingCache(tmp_path / "cache", source)
    report = cache.fill(images, PROMPTS)
    assert (report.encoded, report.reused, source.loads) == (0, 29, 1)
    assert len(cache.images(images)) == 20


def test_prompts_that_were_cut_off_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: PooledPixels, prompts: list[str]) -> list[str]:
        return [prompt for prompt in prompts if len(prompt) > 5]

    monkeypatch.setattr(PooledPixels, "cut_prompts", cut, raising=False)
    cache = EmbeddingCache(tmp_path, PooledPixelsSource())
    assert cache.fill([], ["a cat", "a horse"]).cut == ("a horse",)
    assert cache.fill([], ["a dog", "a giraffe"]).cut == ("a giraffe",)
    again = PooledPixelsSource()
    assert EmbeddingCache(tmp_path, again).fill([], ["a giraffe", "a dog", "a horse"]).cut == ("a giraffe", "a horse")
    assert again.loads == 0


def test_encoders_and_precisions_do_not_mix(tmp_path: Path, images: list[Path]) -> None:
    caches = [EmbeddingCache(tmp_path, PooledPixelsSource(seed), storage) for seed, storage in SETTINGS]
    assert [cache.fill(images, PROMPTS).encoded for cache in caches] == [29, 29, 29]
    assert len({cache.folder for cache in caches}) == 3


SETTINGS: tuple[tuple[int, Storage], ...] = ((0, "fp32"), (1, "fp32"), (0, "fp16"))


def test_asking_for_what_is_not_there_says_so(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"20 of 20 images are not in the cache .*fill\(\) first"):
        EmbeddingCache(tmp_path / "cache", source).images(images)


class Interrupted(PooledPixels):
    def __init__(self, batches: int) -> None:
        super().__init__(0)
        self.left = batches

    def encode_images(self, images: Tensor) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().encode_images(images)


@dataclass
class InterruptedSource(PooledPixelsSource):
    batches: int = 0

    def load(self) -> PooledPixels:
        return Interrupted(self.batches)


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_interrupted_filling_resumes_to_the_same_bits(
    tmp_path: Path, source: PooledPixelsSource, images: list[Path], batches: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path / "cache", InterruptedSource(batches=batches), batch_size=4).fill(images, PROMPTS)
    resumed = EmbeddingCache(tmp_path / "cache", source, batch_size=4)
    assert resumed.fill(images, PROMPTS).encoded == 29 - 4 * batches
    whole = EmbeddingCache(tmp_path / "whole", source, batch_size=4)
    whole.fill(images, PROMPTS)
    assert torch.equal(resumed.images(images).gather(), whole.images(images).gather())


KILLED = """
import os, sys
from pathlib import Path
from t2ifb.data import embeddings
from tests.data.parts import PooledPixels, PooledPixelsSource
embeddings.COMMIT_SECONDS = 0.0
class Suicidal(PooledPixels):
    left = int(sys.argv[3])
    def encode_images(self, images):
        if self.left == 0:
            os.kill(os.getpid(), 9)
        self.left -= 1
        return super().encode_images(images)
class Source(PooledPixelsSource):
    def load(self):
        return Suicidal(0)
images = sorted(Path(sys.argv[1]).iterdir())
embeddings.EmbeddingCache(sys.argv[2], Source(), batch_size=4).fill(images, [])
"""


def run(script: str, *arguments: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_job_keeps_what_was_whole(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    killed = run(KILLED, tmp_path / "images", tmp_path / "cache", 3)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    cache = EmbeddingCache(tmp_path / "cache", source, batch_size=4)
    assert cache.fill(images, []).encoded == 8
    torch.testing.assert_close(cache.images(images).gather(), expected(images))


def test_rows_beyond_the_index_are_not_believed(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    cache = EmbeddingCache(tmp_path / "cache", source)
    cache.fill(images[:10], [])
    with (cache.folder / "images.npy").open("ab") as file:
        file.write(b"torn rows of a job that was killed")
    cache = EmbeddingCache(tmp_path / "cache", source)
    assert cache.fill(images, []).encoded == 10
    torch.testing.assert_close(cache.images(images).gather(), expected(images))


@pytest.mark.parametrize("damage", ["short rows", "no rows", "torn index", "torn header"])
def test_damaged_files_are_filled_anew(
    tmp_path: Path, source: PooledPixelsSource, images: list[Path], damage: str
) -> None:
    cache = EmbeddingCache(tmp_path / "cache", source)
    cache.fill(images, [])
    rows, index = cache.folder / "images.npy", cache.folder / "images.index.npy"
    if damage == "no rows":
        rows.unlink()
    elif damage == "short rows":
        rows.write_bytes(rows.read_bytes()[: 128 + 5 * 24 + 7])
    elif damage == "torn index":
        index.write_bytes(index.read_bytes()[:200])
    else:
        rows.write_bytes(bytes(128) + rows.read_bytes()[128:])
    cache = EmbeddingCache(tmp_path / "cache", source)
    assert cache.fill(images, []).encoded == (15 if damage == "short rows" else 20)
    torch.testing.assert_close(cache.images(images).gather(), expected(images))


SHARED = """
import sys
from pathlib import Path
from t2ifb.data.embeddings import EmbeddingCache
from tests.data.parts import PooledPixelsSource
source = PooledPixelsSource()
cache = EmbeddingCache(sys.argv[2], source, batch_size=2)
print(cache.fill(sorted(Path(sys.argv[1]).iterdir()), ["a", "b"]).encoded, file=sys.stderr)
"""


@pytest.mark.slow
def test_two_jobs_at_once_share_the_work(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    jobs = [run(SHARED, tmp_path / "images", tmp_path / "cache") for _ in range(2)]
    encoded = [int(job.communicate(timeout=60)[1].splitlines()[-1]) for job in jobs]
    assert sum(encoded) == 22
    cache = EmbeddingCache(tmp_path / "cache", source)
    assert cache.fill(images, ["a", "b"]).encoded == 0
    torch.testing.assert_close(cache.images(images).gather(), expected(images))


def test_a_full_disk_is_one_message_and_keeps_what_was_whole(
    tmp_path: Path, source: PooledPixelsSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "COMMIT_SECONDS", 0.0)
    images = make_images(tmp_path / "images", 60)
    cache = EmbeddingCache(tmp_path / "cache", source, batch_size=4)
    cache.fill(images[:8], [])
    cache._image_keys(images)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ValueError, match=f"No space left in {cache.folder}"):
            cache.fill(images, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    cache = EmbeddingCache(tmp_path / "cache", source, batch_size=4)
    assert 0 < cache.fill(images, []).encoded < 52
    torch.testing.assert_close(cache.images(images).gather(), expected(images))


READ_ONLY = """
import os, sys
from pathlib import Path
from t2ifb.data.embeddings import EmbeddingCache
from tests.data.parts import PooledPixelsSource
if os.getuid() == 0:
    os.setuid(65534)  # root may write everywhere
cache = EmbeddingCache(sys.argv[2], PooledPixelsSource())
images = sorted(Path(sys.argv[1]).iterdir())
print(cache.fill(images[:4], []).reused)
try:
    cache.fill(images, [])
except ValueError as error:
    print(error)
"""


def test_a_read_only_cache_can_be_read_and_says_what_it_is(source: PooledPixelsSource) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        images = make_images(folder / "images", 6)
        cache = EmbeddingCache(folder / "cache", source)
        cache.fill(images[:4], [])
        (cache.folder / "lock").unlink(missing_ok=True)
        for path in (cache.root, cache.folder):
            path.chmod(0o555)
        output, errors = run(READ_ONLY, folder / "images", folder / "cache").communicate(timeout=60)
        for path in (cache.root, cache.folder):
            path.chmod(0o755)
    reused, message = output.splitlines()
    assert reused == "4", errors
    assert message.startswith(f"{cache.folder} is not writable")


def test_an_unreadable_image_is_named(tmp_path: Path, source: PooledPixelsSource, images: list[Path]) -> None:
    images[3].write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*03.png"):
        EmbeddingCache(tmp_path / "cache", source).fill(images, [])
    images[3].unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*03.png"):
        EmbeddingCache(tmp_path / "cache", source).fill(images, [])


class Broken(PooledPixels):
    def encode_prompts(self, prompts: list[str]) -> Tensor:
        return super().encode_prompts(prompts) * float("nan")


class BrokenSource(PooledPixelsSource):
    def load(self) -> PooledPixels:
        return Broken(0)


def test_nan_is_never_kept(tmp_path: Path, source: PooledPixelsSource) -> None:
    with pytest.raises(ValueError, match="NaN or infinity for prompts"):
        EmbeddingCache(tmp_path / "cache", BrokenSource()).fill([], PROMPTS)
    assert EmbeddingCache(tmp_path / "cache", source).fill([], PROMPTS).encoded == 9


def test_wrong_arguments_are_refused(tmp_path: Path, source: PooledPixelsSource) -> None:
    with pytest.raises(ValueError, match="storage must be fp32, fp16, bf16, not 'int8'"):
        EmbeddingCache(tmp_path, source, "int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        EmbeddingCache(tmp_path, source, batch_size=0)
