"""Pixels and tokens for an encoder that is tuned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from t2ifb.data.datamodules import RewardDataModule
from t2ifb.data.images import load_image
from t2ifb.data.pixel_features import PixelFeatures
from t2ifb.scorers.preprocess import square
from tests.data.parts import FolderDataset, picture


class Eyes:
    """What an encoder does before its network."""

    image_size = 8

    def square(self, images: Tensor) -> Tensor:
        return square(images, self.image_size)

    def tokenize(self, prompts: list[str]) -> Tensor:
        return torch.tensor([[len(prompt), ord(prompt[0])] for prompt in prompts])


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        picture(number, (8 + number % 3, 8)).save(path)
    return paths


def test_images_are_read_when_gathered_and_brought_to_one_size(images: list[Path]) -> None:
    pixels = PixelFeatures(Eyes()).images(images)
    index = np.array([17, 3, 17, 0, 5])
    expected = torch.cat([square(load_image(images[number])[None], 8) for number in index])
    assert torch.equal(pixels.gather(index), expected)
    assert torch.equal(pixels.gather(slice(2, 5)), pixels.gather()[2:5])
    assert len(pixels) == 20
    images[3].unlink()
    pixels.gather(np.array([0, 1]))
    with pytest.raises(ValueError, match=r"cannot read the image .*3\.png"):
        pixels.gather(index)


def test_texts_are_tokens(images: list[Path]) -> None:
    tokens = PixelFeatures(Eyes()).prompts(["ab", "c", "ab"])
    assert len(tokens) == 3
    assert tokens.gather(np.array([1, 2])).tolist() == [[1, ord("c")], [2, ord("a")]]


def test_what_is_cut_off_is_said_once(dataset: FolderDataset, caplog: pytest.LogCaptureFixture) -> None:
    class NearSighted(Eyes):
        def cut_prompts(self, prompts: list[str]) -> list[str]:
            return [prompt for prompt in prompts if "1" in prompt]

    module = RewardDataModule(dataset, PixelFeatures(NearSighted()), batch_size=20)
    module.prepare_data()
    module.prepare_data()
    module.train_batch(0)
    prompts = {ranking.prompt for split in module.splits for ranking in dataset.rankings(split)}
    expected = sum("1" in prompt for prompt in prompts)
    assert f"{expected} of {len(prompts)} prompts are longer than the context of the encoder" in caplog.text
    assert caplog.text.count("cut off") == 1


def test_a_data_module_batches_pixels_as_it_batches_embeddings(dataset: FolderDataset) -> None:
    module = RewardDataModule(dataset, PixelFeatures(Eyes()), batch_size=20)
    module.prepare_data()
    batch, rankings = module.train_batch(0), dataset.rankings("train")
    every = [image for ranking in rankings for image in ranking.images]
    expected = torch.stack([load_image(every[number]) for number in batch.image_index.tolist()])
    assert torch.equal(batch.images, square(expected, 8))
    texts = [ranking.prompt for ranking in rankings for _ in ranking.images]
    assert torch.equal(batch.prompts, Eyes().tokenize([texts[number] for number in batch.image_index.tolist()]))
