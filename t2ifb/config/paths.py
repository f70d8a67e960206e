"""Where things are: the configuration files, the data, the weights that ship with the package."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_folder() -> Path:
    """Find the configuration files.

    A wheel has them inside the package (`t2ifb/conf`); a checkout, and so an editable install, beside it.

    Raises:
        FileNotFoundError: Neither is there: the installation is broken.
    """
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml in {PACKAGE} or beside it; install t2ifb again")


def shapes_weights(part: str) -> Path:
    """The folder of one shipped part of the embedded world, such as `clip` or `pipeline`."""
    return PACKAGE / "shapes" / "weights" / part


def job_folder(arguments: Iterable[str]) -> str:
    """The name of the folder of a sweep's job: ten letters and figures that stand for its arguments.

    Those of the logger change no weight and are left out.
    """
    kept = [text for text in arguments if re.split("[.=@]", text.lstrip("+~"))[0] != "logger"]
    return hashlib.sha256(",".join(sorted(kept)).encode()).hexdigest()[:10]
