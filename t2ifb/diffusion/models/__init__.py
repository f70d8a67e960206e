"""Families of text-to-image models, one file each. A new file needs no entry in a list."""

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

from t2ifb.diffusion.model import ModelSource
from t2ifb.diffusion.source import pipeline_class


def source_of(source: str | Path, **options: Any) -> ModelSource:
    """The source of a model, of the family that reads its pipeline.

    Args:
        source: Hub id, folder in diffusers' format, or single file. The pipeline of a single file is that of
            `options["config"]`.
        options: Further arguments of the family's source.

    Raises:
        ValueError: `model_index.json` cannot be read, or no family reads such a pipeline.
    """
    name = pipeline_class(str(source), options.get("config"))
    families: list[Any] = [
        family
        for module in pkgutil.iter_modules(__path__, f"{__name__}.")
        for family in vars(import_module(module.name)).values()
        if inspect.isclass(family) and "pipelines" in vars(family)
    ]
    for family in families:
        if name in family.pipelines:
            made: ModelSource = family(str(source), **options)
            return made
    known = ", ".join(sorted({each for family in families for each in family.pipelines}))
    raise ValueError(f"{source} is a {name}; expected one of {known}")
