"""What a user wrote wrongly, in one short message that names the key or file and the nearest right name."""

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException

from t2ifb.utils.overrides import argument

SWEEPS = "; it comes with pip install -c constraints.txt -e '.[sweeps]'"
EXTRAS = {
    **{("hydra/launcher", name): SWEEPS for name in ("joblib", "submitit_local", "submitit_slurm")},
    ("hydra/sweeper", "optuna"): SWEEPS,
}
"""Options of Hydra that an extra of this package brings."""


class ConfigError(ValueError):
    """Everything that is wrong with a configuration; the command ends with exit status 2.

    Attributes:
        errors: One line per error, each naming a key, an argument or a file.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = tuple(dict.fromkeys(errors))
        super().__init__("\n".join(self.errors))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        """How it comes out of another process."""
        return type(self), (self.errors,)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint such as `; did you mean 'seed'?`, or nothing when no name is near."""
    found = difflib.get_close_matches(name, sorted(set(names)), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """`nearest` for dotted keys: first beside the key, then the same last part elsewhere, then any key."""
    known = sorted(set(known))
    parent, _, last = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    found = [beside[name] for name in difflib.get_close_matches(last, beside, n=1)]
    found = found or [k for k in known if k.rpartition(".")[2] == last][:1]
    found = found or [k for k in difflib.get_close_matches(key, known, n=1) if not parent or k != parent]
    return f"; did you mean '{found[0]}'?" if found else ""


def missing_file(path: Path) -> str:
    """Say that `path` is not there, where the path breaks off and which name beside it is near."""
    parent = path.absolute().parent
    missing = path.name
    while not parent.is_dir():
        parent, missing = parent.parent, parent.name
    hint = nearest(missing, (entry.name for entry in parent.iterdir()))
    return f"there is no {path}" + (f" ('{missing}' is not in {parent}{hint})" if hint else "")


def explain_override(override: str, error: Exception, known: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    """Turn the exception that composing with `override` raised into one line.

    Args:
        override: The argument as typed, such as `+experiment=refl`.
        error: What Hydra or OmegaConf raised.
        known: The dotted keys that exist.
        groups: The groups that exist and their options.
    """
    text = f"{error}\n{error.__cause__ or ''}"
    name, _, value = override.lstrip("+~").partition("=")
    if isinstance(error, OverrideParseException):
        return f"{override}: not readable as key=value{_quoted(override)}"
    if isinstance(error, MissingConfigException):
        return _explain_option(override, error)
    if "No match in the defaults list" in text:
        return f"{override}: this group is added to the defaults, write {shlex.quote(f'+{name}={value}')}"
    if "Multiple values for" in text or "Could not append to config" in text:
        return f"{override}: '{name}' is there already, write {shlex.quote(f'{name}={value}')} without +"
    if "Ambiguous value" in text or "requires --multirun" in text:
        return (
            f"{override}: several values; add -m to run each of them, write {name}=[{value}] for a list, "
            f"or {_quoted(override, '')} for one value with a comma"
        )
    if "Config group override" in text:
        return f"{override}: '{name}' is a group, choose one of its options: {', '.join(groups.get(name, ()))}"
    return _explain_key(override, text, known, groups)


def _quoted(override: str, before: str = "; type ") -> str:
    """The argument with the quotes that Hydra needs around the value, or around each value of a list."""
    key, equals, value = override.partition("=")
    if not equals:
        return ""
    if value.startswith("[") and value.endswith("]"):
        items = [argument("x", item.strip()).removeprefix("x=") for item in value[1:-1].split(",")]
        return before + shlex.quote(f"{key}=[{','.join(items)}]")
    return before + shlex.quote(argument(key, value))


def _explain_option(override: str, error: MissingConfigException) -> str:
    """A group's option that does not exist, chosen on the command line or in a file."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or [])
    place = re.search(r"In '([^']+)'", str(error))
    of_ours = place and "/" in place[1] and not place[1].startswith("hydra/")
    where = f"conf/{place[1]}.yaml, by {override}" if place and of_ours else override
    if not group:
        return f"{where}: there is no conf/{option}.yaml"
    choices = f" (there are: {', '.join(options)})" if options else ""
    hint = nearest(option, options) or EXTRAS.get((group, option), "")
    return f"{where}: there is no '{option}' in group '{group}'{hint}{choices}"


def _explain_key(override: str, text: str, known: Sequence[str], groups: Iterable[str]) -> str:
    """An unknown key or a value of the wrong type, on the command line or in a file that the argument chose."""
    key = re.search(r"full_key: (\S+)", text)
    place = re.search(r"In '([^']+)'", text)
    named = re.search(r"Could not override '([^']+)'", text)
    where = f"conf/{place[1]}.yaml, by {override}" if place and place[1] not in override.split("=") else override
    unknown = key[1] if key and re.search(r"Key '[^']+' (is )?not in", text) else named and named[1]
    if unknown:
        kind = "key" if "." in unknown else "key or group"
        parent = unknown.rpartition(".")[0]
        add = f"; an argument of {parent} that no file sets is given with +" if f"{parent}._target_" in known else ""
        return f"{where}: there is no {kind} '{unknown}'{nearest_key(unknown, [*known, *groups])}{add}"
    cause = next((line for line in text.splitlines() if re.match(r"\s*(Value|Cannot)\b", line)), None)
    reason = (cause or re.sub(r"^In '[^']+': ", "", text.strip()).splitlines()[0]).strip()
    return f"{where}: {key[1] + ': ' if key and place else ''}{reason[:1].lower()}{reason[1:]}"
