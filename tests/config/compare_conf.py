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
    "rollout=<domain>": "renamed: sampling@rollout=<domain>",
    "scorer=latest": "renamed: scorer=reward_model, whose source is `latest` by default",
    "scorer=judging_aesthetic_score": "moved into experiment/refl_overoptimised.yaml",
    "trainer=gpu": "removed: trainer.accelerator=gpu says the same",
    "+published@algorithm.published=report": "moved to dataset.published",
}
"""Options of groups that are gone."""
FACTS = ("test_splits", "published", "ceiling", "ceiling_parts")
"""Keys that moved to the data set: recipe/data/ and published/ had them."""
ABSENT = "absent"


def explained(case: str, key: str, before: Any, after: Any, then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Why a key differs; None if it must not.

    Args:
        case: The command and its arguments.
        key: A dotted key.
        before: Its value before, or `ABSENT`.
        after: Its value after, or `ABSENT`.
        then: The whole configuration before, flat.
        now: The whole configuration after, flat.
    """
    if case.startswith("plan") and "+experiment" not in case:
        return "removed: plan has no algorithm of its own, and asks for +experiment=refl"
    if case.startswith("plan +experiment=reward_") and "optimizer" in key and "reward_weighted" not in case:
        return "changed: the optimiser of a reward run, which plan refuses, is that of train"
    first, _, rest = key.partition(".")
    fact = next((fact for fact in FACTS if f".{fact}." in f".{key}."), None)
    in_dataset = "dataset" in key.split(".") and fact is not None
    if in_dataset and before == ABSENT:
        return "moved: a fact of the data set is an argument of the data set"
    if first in ("algorithm", "evaluation") and fact and before == ABSENT:
        if key == "evaluation.ceiling" and after == "gold" and now.get("scorers.gold") is None:
            return "always named: the scorer `gold` is null where the data set has no ceiling"
        if after is None or after in ([], ["test"]):
            return "always given: the default of the argument, where the data set does not have the fact"
    if (
        key == "splits"
        and after is None
        and before == ["train", "validation", *now.get("dataset.test_splits", ["test"])]
    ):
        return "derived: null is train, validation and the test splits of the data set"
    if key == "scorers.gold" and before == ABSENT and after is None:
        return "null, and so left out, where the data set has no ceiling"
    if key == "scorers.gold.part" and (before, after) == ("gold", ABSENT):
        return "removed: the default of the argument"
    if first == "rollout" or key.startswith("algorithm.rollout."):
        if rest.endswith("unconditional") and (before, after) == ("grad", ABSENT):
            return "removed: the default of the argument"
        if (key, before, after) == ("rollout.unconditional", "detached", ABSENT) and "algorithm.alpha" not in now:
            return "moved to recipe/sd15/fine_tuning.yaml: only fine-tuning has rollouts"
    return None


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values that are no mappings with entries."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print how often each explanation was needed and what has none; gives how many have none."""
    reasons: dict[str, set[str]] = {}
    left = [f"{case}: only in one of the two" for case in before.keys() ^ after.keys()]
    for case in before.keys() & after.keys():
        then, now = flat(before[case]), flat(after[case])
        for key in then.keys() | now.keys():
            was, is_now = then.get(key, ABSENT), now.get(key, ABSENT)
            if was == is_now:
                continue
            if reason := explained(case, key, was, is_now, then, now):
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
