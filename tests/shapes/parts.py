"""A few clean pictures of the shapes world as preference data."""

from pathlib import Path

import numpy as np
from PIL import Image

from t2ifb.data.datasets.imagereward_writer import Record, write_imagereward_db
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.renderer import render


def write_database(folder: Path) -> Path:
    """Six prompts a split, the right picture ranked above two others."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test", "compositional"):
        records = []
        for number, scene in enumerate(drawn := scenes(split, 6, seed=0)):
            for shown, rank in ((scene, 1), (drawn[number - 1], 2), (drawn[number - 2], 2)):
                image = Image.fromarray((render(shown, rng) * 255).round().astype(np.uint8))
                records.append(Record(f"{split}-{number}", scene.prompt, "", image, rank, 4, 4, 4))
        write_imagereward_db(folder, split, records)
    return folder
