"""Hard negative captions for binding, counting and relations."""

from dataclasses import replace

import numpy as np

from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, INVERSE, SHAPES, Scene, Thing


def corrupt(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change a scene in a single respect, so that its meaning changes.

    Changes: swap two attributes, recolour or reshape one object, add or remove one, reverse the relation, change the
    background. The result is a scene of the training split too, so that no caption leaks another split.
    """
    ways = [_recolour, _reshape, _recount, _swap, _swap, _turn, _turn, _repaint]
    for index in rng.permutation(np.tile(np.arange(len(ways)), 16)):
        changed = ways[index](scene, rng)
        if changed is not None and changed.meaning() != scene.meaning() and _allowed(changed):
            return changed
    raise AssertionError(f"no corruption found for {scene}")


def _allowed(scene: Scene) -> bool:
    distinct = len(set(scene.things))
    if scene.relation and (len(scene.things) != 2 or distinct != 2):
        return False
    return 1 <= len(scene.things) <= 3 and scene.split == "train"


def _grouped(things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """Group equal objects as in sentences, larger groups first."""
    return tuple(sorted(things, key=lambda thing: (-things.count(thing), things.index(thing))))


def _with(scene: Scene, index: int, thing: Thing) -> Scene:
    things = (*scene.things[:index], thing, *scene.things[index + 1 :])
    return replace(scene, things=things if scene.relation else _grouped(things))


def _recolour(scene: Scene, rng: np.random.Generator) -> Scene:
    index = int(rng.integers(len(scene.things)))
    return _with(scene, index, replace(scene.things[index], color=str(rng.choice(list(COLORS)))))


def _reshape(scene: Scene, rng: np.random.Generator) -> Scene:
    index = int(rng.integers(len(scene.things)))
    return _with(scene, index, replace(scene.things[index], shape=str(rng.choice(SHAPES))))


def _recount(scene: Scene, rng: np.random.Generator) -> Scene | None:
    if scene.relation:
        return None
    things = list(scene.things)
    if len(things) < 3 and (len(things) == 1 or rng.random() < 0.5):
        things.append(things[int(rng.integers(len(things)))])
    else:
        things.pop(int(rng.integers(len(things))))
    return replace(scene, things=_grouped(tuple(things)))


def _swap(scene: Scene, rng: np.random.Generator) -> Scene | None:
    distinct = list(dict.fromkeys(scene.things))
    if len(distinct) < 2:
        return None
    a, b = (distinct[i] for i in rng.choice(len(distinct), 2, replace=False))
    swapped = {a: Thing(b.color, a.shape), b: Thing(a.color, b.shape)}
    things = tuple(swapped.get(thing, thing) for thing in scene.things)
    return replace(scene, things=things if scene.relation else _grouped(things))


def _turn(scene: Scene, rng: np.random.Generator) -> Scene | None:
    return replace(scene, relation=INVERSE[scene.relation]) if scene.relation else None


def _repaint(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, background=str(rng.choice(list(BACKGROUNDS))))
