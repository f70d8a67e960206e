"""Compare every configuration before and after a change of `conf/`.

    python -m tests.config.compare_conf dump before.json        in a checkout of the state before
    python -m tests.config.compare_conf dump after.json
    python -m tests.config.compare_conf before.json after.json

`dump` composes every experiment with every domain and data set for each command, and writes the resolved
configurations as JSON. The comparison prints each difference that `explained` does not list, and then ends with 1.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["T2IFB_DATA"] = "/data"

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2ifb.config.compose import commands_of, compose_all, open_conf
from t2ifb.config.paths import conf_folder
from t2ifb.config.schema import SCHEMAS

CHECKOUT = str(conf_folder().parent)


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (conf_folder() / group).glob("*.yaml"))


def cases() -> list[tuple[str, ...]]:
    """The command and its arguments."""
    with open_conf():
        takes = {name: commands_of(f"+experiment={name}") for name in options("experiment")}
    found: list[tuple[str, ...]] = []
    for command in SCHEMAS:
        for experiment in [None, *(name for name, commands in takes.items() if command in commands)]:
            for domain in options("domain"):
                for dataset in [None, *options("dataset")]:
                    chosen = {"+experiment": experiment, "domain": domain, "dataset": dataset}
                    found.append((command, *(f"{key}={value}" for key, value in chosen.items() if value)))
    return found


def resolved(command: str, *overrides: str) -> dict[str, Any]:
    """The configuration with every interpolation resolved, the folder of the checkout left out."""
    (composed,) = compose_all(command, overrides)
    if composed.errors:
        raise ValueError(f"{command} {overrides}: {composed.errors}")
    values: dict[str, Any] = {}
    for key in composed.config:
        if key == "hydra":
            continue
        try:
            node = OmegaConf.select(composed.config, str(key))
            values[str(key)] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except OmegaConfBaseException as error:
            values[str(key)] = str(error).splitlines()[0]
    return json.loads(json.dumps(values).replace(CHECKOUT, ""))


def dump(file: Path) -> None:
    file.write_text(json.dumps({" ".join(case): resolved(*case) for case in cases()}, indent=1))


OPTIONS = {
    "algorithm=refl, draft, reward_weighted": "moved: +experiment=refl, … over algorithm=fine_tuning",
    "evaluation=table1, figure8": "moved: +experiment=table1, figure8",
    "scorer=shapes_aesthetic_score, …": "removed: scorer=aesthetic_score, … with the domain's scorer_sources",
    "trainer.accelerator=cpu": "removed: trainer.accelerator=cpu says the same",
    "logger=csv": "removed: metrics.csv is always written",
    "+experiment=reward_best": "removed: +experiment=reward_mlp head=interaction says the same",
    "+sweep=reward_lr": "removed: -m optimizer.lr=1.25e-4,2.5e-4,5e-4,1e-3 says the same",
    "hydra/launcher=ray": "moved to t2ifb/config/schema.py",
}
"""Options of groups that are gone or are elsewhere."""
DEFAULTS = {
    "evaluation.judges": None,
    "algorithm.algorithm.last_steps": 1,
    "algorithm.algorithm.gradients_per_rollout": 1,
}
"""Arguments that no file sets where a setting has no recipe, and their defaults."""
OWN = ("aesthetic_score", "blip_score", "image_reward")
"""Scorers that have weights of their own in `shapes`."""
ABSENT = "absent"


def gone(case: str) -> bool:
    """Whether a case that was composed before is of an experiment that is gone."""
    return "+experiment=reward_best" in case


def explained(case: str, key: str, before: Any, after: Any) -> str | None:
    """Why a key differs; None if it must not.

    Args:
        case: The command and its arguments.
        key: A dotted key.
        before: Its value before, or `ABSENT`.
        after: Its value after, or `ABSENT`.
    """
    first, _, rest = key.partition(".")
    if before == ABSENT and first in ("samples_per_batch", "scorer_sources"):
        return "added: a fact of the domain"
    if after == ABSENT and key in DEFAULTS and before == DEFAULTS[key]:
        return "removed: the default of the argument, where the setting has no recipe"
    if (before, after) in ((ABSENT, None), (ABSENT, "fp32")):
        name, _, argument = key.rpartition(".")
        if name.rpartition(".")[2] in OWN and argument in ("vocabulary", "precision") and "domain=shapes" in case:
            return "added: the default of the argument, as in the file of the public weights"
    if case.split()[0] == "evaluate" and "+experiment" not in case:
        table1 = first == "evaluation" or key.startswith(("scorers.gold", "scorers.reward_model"))
        if table1 and after in (ABSENT, {}):
            return "removed: evaluate has no evaluation of its own, and asks for +experiment=table1 or figure8"
    return None


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values that are no mappings with entries."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print how often each explanation was needed and what has none; gives how many have none."""
    reasons: dict[str, set[str]] = {}
    left = [f"{case}: only in one of the two" for case in before.keys() ^ after.keys() if not gone(case)]
    for case in before.keys() & after.keys():
        then, now = flat(before[case]), flat(after[case])
        for key in then.keys() | now.keys():
            was, is_now = then.get(key, ABSENT), now.get(key, ABSENT)
            if was == is_now:
                continue
            if reason := explained(case, key, was, is_now):
                reasons.setdefault(reason, set()).add(key)
            else:
                left.append(f"{case}: {key}: {was!r} -> {is_now!r}")
    for option, reason in OPTIONS.items():
        print(f"{option}: {reason}")
    for reason, keys in sorted(reasons.items()):
        print(f"{reason}: {', '.join(sorted(keys))}")
    print("\n".join(sorted(left)))
    print(f"{len(before.keys() & after.keys())} configurations, {len(left)} differences without an explanation")
    return len(left)


if __name__ == "__main__":
    if sys.argv[1] == "dump":
        dump(Path(sys.argv[2]))
    else:
        sys.exit(compare(*(json.loads(Path(name).read_text()) for name in sys.argv[1:3])) > 0)
