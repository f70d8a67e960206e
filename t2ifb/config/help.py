"""What `--help` prints. Hydra's own answer takes twice as long: it copies its store for every group."""

from string import Template

from omegaconf import DictConfig, OmegaConf

from t2ifb.config.compose import groups_in, searched_folders


def help_text(config: DictConfig) -> str:
    """The command's help: the template of `conf/hydra/help/t2ifb.yaml`, filled in.

    Args:
        config: Composed, with its `hydra` node.
    """
    groups = groups_in(searched_folders(config))
    listed = "\n".join(f"{name}: {', '.join(options)}" for name, options in groups.items())
    shown = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return Template(config.hydra.help.template).substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(shown))
