"""Scorers and encoders named by a text."""

from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from t2ifb.data.storage.hub import is_hub_id
from t2ifb.scorers import scorer_classes
from t2ifb.scorers.clip import LOCAL_DIR, CLIPSource
from t2ifb.scorers.reward_model import RewardModel
from t2ifb.utils.reward_runs import LATEST, newest_reward_run


def clip_source(encoder: CLIPSource | str | Path) -> CLIPSource:
    """An encoder from its shorthand; a `CLIPSource` is returned unchanged.

    Args:
        encoder: A folder in `open_clip`'s format, also as `local-dir:<folder>`; or `<model>/<pretrained>` with an
            `open_clip` model name and a tag or file of weights, such as `ViT-L-14-quickgelu/openai`.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(encoder, CLIPSource):
        return encoder
    text = str(encoder)
    if text.startswith(LOCAL_DIR) or (text and Path(text).expanduser().is_dir()):
        return CLIPSource(LOCAL_DIR + text.removeprefix(LOCAL_DIR))
    model, _, pretrained = text.partition("/")
    if not model or not pretrained:
        raise ValueError(
            f"encoder={text!r} is neither a folder nor <model>/<pretrained>, such as 'ViT-L-14-quickgelu/openai'"
        )
    return CLIPSource(model, pretrained)


def scorer_part(scorer: str | Path, argument: str, runs: Path) -> "partial[Any]":
    """An unbuilt scorer from its shorthand.

    Args:
        scorer: `latest`; a run folder, an exported reward model or its hub id; or the name of a scorer that needs no
            arguments, such as `image_reward` or `ImageReward`.
        argument: Name of the argument that it is given for, for messages.
        runs: Folder in which `latest` is the newest finished reward run.

    Raises:
        ValueError: There is no such run or scorer, or the scorer needs arguments.
    """
    text = str(scorer)
    if text == LATEST:
        run = newest_reward_run(runs)
        if run is None:
            raise ValueError(
                f"{argument}='latest': there is no finished reward run in {runs}; train one with RewardTrainer, or "
                f"give {argument}=<run folder>"
            )
        return partial(RewardModel.from_pretrained, source=str(run))
    names = {_plain(name): name for name in scorer_classes()}
    if name := names.get(_plain(text)):
        return _by_name(name, argument)
    path = Path(text).expanduser()
    if not text or not (path.exists() or is_hub_id(scorer)):
        raise ValueError(
            f"{argument}={text!r} is neither a file or folder, nor a hub id, nor one of the scorers "
            f"{', '.join(sorted(names.values()))}"
        )
    return partial(RewardModel.from_pretrained, source=str(path.absolute()) if path.exists() else text)


def _by_name(name: str, argument: str) -> "partial[Any]":
    kind = getattr(import_module(scorer_classes()[name]), name)
    make = getattr(kind, "from_pretrained", kind)
    needed = [key for key, each in signature(make).parameters.items() if each.default is Parameter.empty]
    if needed:
        raise ValueError(
            f"{argument}={name!r} needs {', '.join(needed)}; give {argument}={make.__qualname__}({needed[0]}=…)"
        )
    return partial(make)


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()
