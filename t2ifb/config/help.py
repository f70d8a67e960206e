"""What `--help` prints. Hydra's own answer copies the configuration store for every group, which takes a second."""

from pathlib import Path
from string import Template

from omegaconf import DictConfig, OmegaConf

HIDDEN = ("hydra", "recipe", "__pycache__")
"""Folders whose options nobody chooses by hand."""


def help_text(config: DictConfig) -> str:
    """The command's help: the template of `conf/hydra/help/`, filled in.

    Args:
        config: Composed, with its `hydra` node.
    """
    folders = [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]
    options: dict[str, set[str]] = {}
    for file in (file for folder in folders for file in folder.glob("*/*.yaml")):
        options.setdefault(file.parent.name, set()).add(file.stem)
    groups = "\n".join(f"{name}: {', '.join(sorted(options[name]))}" for name in sorted(options) if name not in HIDDEN)
    shown = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return Template(config.hydra.help.template).substitute(APP_CONFIG_GROUPS=groups, CONFIG=OmegaConf.to_yaml(shown))
