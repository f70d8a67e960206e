"""Folders of drawn images."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from t2ifb.annotation.items import read_items
from t2ifb.data.drawn import file_name, write_image, write_index


def test_what_is_written_is_what_annotators_are_asked_about(tmp_path: Path) -> None:
    prompt = "ein grüner Kreis </script>"
    images = torch.randint(0, 255, (2, 3, 8, 6), dtype=torch.uint8)
    names = [file_name(3, copy, "tuned") for copy in range(2)]
    for name, image in zip(names, images, strict=True):
        write_image(tmp_path / name, image)
    write_index(tmp_path, [{"prompt": prompt, "images": {"tuned": names}}])
    assert names == ["0003_0_tuned.png", "0003_1_tuned.png"]
    assert (np.array(Image.open(tmp_path / names[1])) == images[1].permute(1, 2, 0).numpy()).all()
    assert json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8"))[0]["prompt"] == prompt
    (item,) = read_items(tmp_path)
    assert (item.prompt, set(item.images)) == (prompt, {tmp_path / name for name in names})
