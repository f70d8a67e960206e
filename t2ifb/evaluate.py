"""`python -m t2ifb.evaluate`: a table or figure that judges scorers or generators; `--help` says what exists."""

import inspect
import sys
from itertools import chain, count
from typing import Any

from t2ifb.config.command import command
from t2ifb.config.compose import flatten
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components, lazy
from t2ifb.config.resume import changes
from t2ifb.config.reward_source import absolute, find_latest, rewards_of, settings_of
from t2ifb.prepare import ready_dataset


def evaluate(parts: Components) -> None:
    """Make the data if need be, then evaluate into the run's folder."""
    from t2ifb.evaluation.lazy import UnusableScorers
    from t2ifb.training.run_folder import RunFolder

    _tell_what_differs(parts)
    scorers = _scorers(parts)
    make = parts.build("evaluation")
    offered = {"trained_on": _add_rewards(parts, scorers)}
    offered |= {name: lazy(parts.value(name)) for name in ("diffusion", "sampling", "encoder")}
    offered |= {"scorers": {name: lazy(node) for name, node in scorers.items()}}
    takes = inspect.signature(make).parameters
    try:
        evaluation = make(**{name: value for name, value in offered.items() if name in takes})
    except ValueError as error:
        raise ConfigError([f"evaluation: {error}"]) from error
    if evaluation.splits:
        ready_dataset(parts, evaluation.splits)
    run = RunFolder(parts.run_folder)
    with run.held():
        try:
            figures = evaluation.run(run.path)
        except UnusableScorers as error:
            errors = [f"scorers.{key}: {text} (without it: ~scorers.{key})" for key, text in error.errors.items()]
            raise ConfigError(errors) from error
        sources = {name: node["source"] for name, node in scorers.items() if isinstance(node.get("source"), str)}
        run.write_summary(figures | {"sources": sources})
    print(f"tables and pictures: {run.path}")


def _scorers(parts: Components) -> dict[str, dict[str, Any]]:
    """The wished scorers by name; without those that are null, or a reward model that is not there yet."""
    wished = {name: node for name, node in parts.value("scorers").items() if node is not None}
    found, notes = find_latest(wished, "scorers", parts.value("domain"), parts.arguments)
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    if not found:
        raise ConfigError(["scorers: expected at least one; add it by +scorer@scorers.<name>=<option>"])
    return found


def _tell_what_differs(parts: Components) -> None:
    """Say where the base model and the sampling of the runs in `run` are not those of this evaluation."""
    here = {key: absolute(parts.value(key)) for key in ("diffusion", "sampling")} if parts.value("run") else {}
    for run in _runs(parts):
        there = flatten(settings_of(run, list(here)))
        now = flatten(here)
        changed = changes(there, {key: now[key] for key in there if key in now})
        if other := [line for line in changed if line.startswith(("diffusion.source ", "sampling."))]:
            print(f"{run}: when it was tuned, {'; '.join(other)}", file=sys.stderr)


def _runs(parts: Components) -> list[str]:
    wish = parts.value("run")
    return [wish] if isinstance(wish, str) else list(wish)


def _add_rewards(parts: Components, scorers: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Put what the runs in `run` were trained on among the scorers; gives the names of each run's."""
    trained_on: dict[str, list[str]] = {}
    for run in _runs(parts):
        for node in rewards_of(run):
            if node not in map(absolute, scorers.values()):
                names = chain(["reward"], (f"reward_{number}" for number in count(2)))
                scorers[next(name for name in names if name not in scorers)] = node
            trained_on.setdefault(run, []).extend(name for name, other in scorers.items() if absolute(other) == node)
    return trained_on


main = command("evaluate", evaluate)

if __name__ == "__main__":
    main()
