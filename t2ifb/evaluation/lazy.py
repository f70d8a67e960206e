"""Components that are not built yet: name and construction.

An unbuilt component is a `functools.partial` whose call builds it, such as
`partial(CLIPScore.from_pretrained, source=CLIPSource("ViT-L-14-quickgelu", "openai"))`. Partials among the arguments
are components that are built first.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from t2ifb.utils.fingerprints import qualified_name

Unbuilt: TypeAlias = partial[Any]


class UnusableScorers(ValueError):
    """Scorers that cannot be built or fail.

    Attributes:
        errors: Error message of each scorer, by name.
    """

    def __init__(self, errors: Mapping[str, str]) -> None:
        self.errors = dict(errors)
        super().__init__("\n".join(f"{name}: {error}" for name, error in errors.items()))

    def __reduce__(self) -> tuple[type, tuple[dict[str, str]]]:
        """Make the exception picklable."""
        return type(self), (self.errors,)


def build(part: Any) -> Any:
    """Build a component and those among its arguments. Other values are returned unchanged."""
    if isinstance(part, partial):
        return part.func(*map(build, part.args), **{name: build(value) for name, value in part.keywords.items()})
    if isinstance(part, dict):
        return {name: build(value) for name, value in part.items()}
    return [build(value) for value in part] if isinstance(part, list) else part


def as_node(part: Any) -> Any:
    """A component as plain containers with `_target_`, from which Hydra can build it.

    Raises:
        ValueError: An argument is an object, which cannot be written down.
    """
    if isinstance(part, partial):
        made_by, arguments = part.func, list(part.args)
        options: dict[str, Any] = {}
        if made_by is partial and arguments:
            made_by, options["_partial_"] = arguments.pop(0), True
        if arguments:
            options["_args_"] = as_node(arguments)
        return {"_target_": qualified_name(made_by), **options, **as_node(part.keywords)}
    if isinstance(part, Mapping):
        return {str(name): as_node(value) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [as_node(value) for value in part]
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, Path):
        return str(part)
    raise ValueError(f"{type(part).__name__} cannot be written down")


def owner(part: Unbuilt) -> Any:
    """The component's class as far as its factory reveals it; the class has the name used in tables."""
    return getattr(part.func, "__self__", part.func)
