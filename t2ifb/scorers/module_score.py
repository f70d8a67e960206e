"""A scorer that is a user's own Python class, by its path."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from t2ifb.scorers.preprocess import check_counts


class ModuleScore(nn.Module):
    """Scores by an object of a class that is called with images and prompts.

    The class takes images (B, 3, H, W) in [0, 1] and a list of B strings, copies that it may change, and returns B
    finite numbers, as a tensor or a list.
    An `nn.Module` moves with this scorer between devices, and its gradients reach the images.

    Attributes:
        name: Name in messages: the class's `name`, or that of the class.
    """

    def __init__(
        self, path: str | Path, class_name: str, arguments: Mapping[str, Any] | None = None, version: str = ""
    ) -> None:
        """Load and build the class.

        Args:
            path: A Python file, or the name of a module that can be imported.
            class_name: Name of the class in it.
            arguments: Keyword arguments of the class.
            version: Stored scores are reused while the arguments and the file are the same; give another version when
                a module has changed that is given by its name or that the file imports.

        Raises:
            ValueError: The file, module or class does not exist, or the class does not accept the arguments.
        """
        super().__init__()
        self.path, self.class_name = str(path), class_name
        made_by = getattr(_load(path), class_name, None)
        if made_by is None:
            raise ValueError(f"{path} has no class {class_name}")
        try:
            scorer = made_by(**dict(arguments or {}))
        except TypeError as error:
            raise ValueError(f"cannot build {class_name} of {path}: {error}") from error
        if not callable(scorer):
            raise ValueError(f"{class_name} of {path} cannot be called; it needs forward(images, prompts)")
        self.scorer: Any = scorer
        self.name = str(getattr(scorer, "name", class_name))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, differentiable if the class is.

        Raises:
            ValueError: The class does not return one finite number for each image.
        """
        check_counts(images, prompts)
        found = self.scorer(images.clone(), list(prompts))
        try:
            scores = torch.as_tensor(found, device=images.device).float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.name} returned {type(found).__name__}; expected {len(prompts)} numbers") from error
        if scores.shape != (len(prompts),):
            raise ValueError(f"{self.name} returned scores of shape {tuple(scores.shape)} for {len(prompts)} images")
        if not scores.is_meta and (wrong := (~scores.isfinite()).nonzero().flatten().tolist()):
            raise ValueError(
                f"{self.name} returned {scores[wrong[0]].item()} for image {wrong[0]} of {len(prompts)}; expected a "
                "finite number of float32"
            )
        return scores


def _load(path: str | Path) -> ModuleType:
    """Import a file or a module.

    Raises:
        ValueError: It does not exist or raises an error.
    """
    file = Path(path).expanduser()
    try:
        if file.suffix != ".py":
            return importlib.import_module(str(path))
        if not file.is_file():
            raise ValueError(f"the file {file} does not exist; expected a Python file with a scorer's class")
        # A name of its own: a file may be called like a package that it imports.
        name = f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(name, module)  # dataclasses and pickle look a class's module up
        spec.loader.exec_module(module)
        return module
    except ValueError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"cannot import {path}: {type(error).__name__}: {error}") from error
