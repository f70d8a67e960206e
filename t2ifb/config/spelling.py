"""Python arguments in a message of the library, as they are typed on the command line."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

ARGUMENT = re.compile(r"(?<![\w.=/])([a-z_]\w*(?:\.[a-z_]\w*)*)=('[^']*'|\[[^]]*\]|[\w.+-]+|…)?")
"""An argument in a message: `batch_size=1`, `model.precision='fp16'`, `logger=…`."""
LINK = re.compile(r"\$\{([\w.]+)\}")
ELSEWHERE = {
    "trainer": "trainer",
    "logger": "logger",
    "output_dir": "hydra.run.dir",
    "resume": "resume",
    "reward": "scorer@reward",
    "schedule": "scheduler",
    "datasets": "+dataset@dataset.datasets.<name>",
    "quick_gelu": "+encoder.quick_gelu",
}
"""Keys of arguments that are not below `algorithm`."""
VALUES = {"True": "true", "False": "false", "None": "null", "…": "…"}


def typed_arguments(message: str, config: Mapping[str, Any], component: str = "algorithm") -> list[str]:
    """The arguments that a message names, as `key=value` for Hydra.

    An argument that the component has is below it, one of the run below `algorithm`; any other is taken if one
    component alone has it.

    Args:
        message: A message of the library.
        config: The whole configuration, interpolations as they are written.
        component: Key of the component that the message is about.
    """
    about = {} if component == "algorithm" else config.get(component)
    run = config.get("algorithm") or {}
    others = {key: node for key, node in config.items() if key != "algorithm"}
    parts = {key: node for key, node in others.items() if isinstance(node, Mapping) and "_target_" in node}
    found: dict[str, None] = {}
    for name, value in ARGUMENT.findall(re.sub(r"`[^`]*`", "", message)):  # commands are spelled already
        link = LINK.fullmatch(str(run.get(name)))
        # A component takes no value: model=ViT-L-14 is meant for another one.
        is_part = link is not None and link[1] in parts and value != "None"
        keys = [] if is_part else list(_keys(name, run, "algorithm"))[:1]
        if isinstance(about, Mapping) and name in about:
            keys = [f"{component}.{name}"]
        keys = keys or [f"{place}.{name}" for place, node in parts.items() if name in node]
        if len(keys) == 1:
            key = keys[0]
            plain = value.strip("'").rstrip(".")
            found[f"{key}={VALUES.get(plain, plain)}"] = None
    return list(found)


def _keys(name: str, node: Mapping[str, Any], place: str) -> Iterator[str]:
    """Keys that an argument may have, the likeliest first."""
    first, _, rest = name.partition(".")
    if first in ELSEWHERE:
        yield ".".join(filter(None, (ELSEWHERE[first], rest)))
    elif first in node:
        link = LINK.fullmatch(str(node[first]))
        yield f"{link[1] if link else f'{place}.{first}'}.{rest}" if rest else f"{place}.{first}"
    for key, child in node.items():
        if isinstance(child, Mapping):
            yield from _keys(name, child, f"{place}.{key}")
