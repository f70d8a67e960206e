"""Pictures with known faults, on which ImageReward's BLIP learns to see before it is tuned on rankings.

A group is two prompts and pictures of their scenes, most of them with one or two edits, arranged at random and damaged.
The faults are known by construction, so no gold score is needed. Every picture of a group is asked about with both
prompts, so that a prompt alone says nothing about the order.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ifb.scorers.blip import BLIP
from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, INVERSE, SHAPES, Scene, Thing, scenes
from t2ifb.shapes.renderer import EXTENT, SIZE, Placed, coverage, paint, related
from t2ifb.shapes.training import distortions
from t2ifb.shapes.training.auxiliary import COMBINATIONS
from t2ifb.shapes.training.captions import corrupt
from t2ifb.shapes.training.distortions import ASPECTS, Damage
from t2ifb.shapes.training.loop import generator

PATCH, CELLS = 8, 4
"""Side of a patch of the image tower in pixels, and of its coarse mask in cells."""
GRID = SIZE // PATCH
PICTURES = 8
"""Pictures of a group."""
RADII = {1: (8.0, 14.0), 2: (7.0, 12.5), 3: (6.5, 10.0), 4: (6.0, 9.0)}
"""Minimum and maximum radius of objects by their number. Prompts have up to three objects, pictures up to four."""
MOST = max(RADII)
EDGES, WOBBLE = ASPECTS.index("edges"), ASPECTS.index("shapes")
KINDS = [Thing(*combination) for combination in COMBINATIONS]


class Picture(NamedTuple):
    """Content of a picture."""

    objects: list[Placed]
    background: str


class Patches(NamedTuple):
    """Content of the 64 patches of each picture.

    Attributes:
        shape: (N, 64) int64, in the order of `SHAPES`; `len(SHAPES)` is background.
        color: (N, 64) int64, in the order of `COLORS`, then `BACKGROUNDS`.
        offset: (N, 64, 2), from the patch to the centre of its object, in units of two patches.
        centre: (N, 64), 1 if an object's centre lies in the patch.
    """

    shape: Tensor
    color: Tensor
    offset: Tensor
    centre: Tensor


class Questions(NamedTuple):
    """Prompts to compare with pictures.

    Attributes:
        prompts: Q prompts.
        picture: (Q,) int64, the picture of each.
        agreement: (Q, 7), see `agreement`.
        mistakes: (Q,), see `mistakes`.
        nouns: (M, 3) int64: a question, the position of a noun's token in it, and the number of such objects shown.
    """

    prompts: list[str]
    picture: Tensor
    agreement: Tensor
    mistakes: Tensor
    nouns: Tensor


class Batch(NamedTuple):
    """Groups of pictures and questions about them.

    Attributes:
        images: (N, 3, 64, 64) in [0, 1].
        severity: (N, 5), damage as in `Damage`.
        patches: Their content.
        counts: (N, K) int64, number of objects of each kind.
        questions: Q = 2 N questions; those with the same prompt of a group follow each other.
    """

    images: Tensor
    severity: Tensor
    patches: Patches
    counts: Tensor
    questions: Questions


class Groups:
    """Endless groups of pictures."""

    def __init__(self, seed: int, count: int = 3000) -> None:
        """Draw the scenes of the prompts."""
        self.seed, self.scenes = seed, scenes("train", count, seed=900 + seed)

    def batch(self, step: int, groups: int) -> Batch:
        """Pictures and questions of a step. They depend on the seed and the step alone."""
        rng, draw = np.random.default_rng([self.seed, 11, step]), generator(self.seed, 11, step)
        pictures: list[Picture] = []
        asked: list[tuple[Scene, int]] = []
        for _ in range(groups):
            scene = self.scenes[int(rng.integers(len(self.scenes)))]
            other = corrupt(scene, rng)
            numbers = range(len(pictures), len(pictures) + PICTURES)
            pictures += [_picture(scene if number % PICTURES < 5 else other, rng) for number in numbers]
            asked += [(which, number) for which in (scene, other) for number in numbers]
        severity = _severity(len(pictures), draw)
        clean = torch.from_numpy(np.stack([paint(*picture) for picture in pictures])).permute(0, 3, 1, 2)
        images = (distortions.apply(clean, Damage(severity), draw) * 255).round() / 255
        counts = [[sum(item.thing == kind for item in picture.objects) for kind in KINDS] for picture in pictures]
        return Batch(images, severity, patches(pictures), torch.tensor(counts), _questions(asked, pictures))


def _picture(scene: Scene, rng: np.random.Generator) -> Picture:
    """A picture of a scene with up to two edits, sometimes on another background."""
    things, background = scene.things, scene.background
    for _ in range(int(rng.choice(3, p=[0.45, 0.4, 0.15]))):
        things = edited(things, rng)
    if rng.random() < 0.06:
        background = str(rng.choice(list(BACKGROUNDS)))
    relation = None
    if scene.relation and len(things) == len(set(things)) == 2:
        options = (scene.relation, INVERSE[scene.relation], None)
        relation = options[int(rng.choice(3, p=[0.35, 0.1, 0.55]))]
    return Picture(arranged(things, rng, relation), background)


def edited(things: tuple[Thing, ...], rng: np.random.Generator) -> tuple[Thing, ...]:
    """Copy, add, remove, replace, recolour or reshape an object, as the base model often does."""
    index, chance = int(rng.integers(len(things))), rng.random()
    thing, before, after = things[index], things[:index], things[index + 1 :]
    others = [other for other in things if other != thing]
    if chance < 0.25 and len(things) < MOST:
        return (*things, thing)
    if chance < 0.32 and len(things) < MOST:
        return (*things, KINDS[int(rng.integers(len(KINDS)))])
    if chance < 0.5 and len(things) > 1:
        return (*before, *after)
    if chance < 0.66 and others:
        return (*before, others[0], *after)
    similar = [kind for kind in KINDS if (kind.color == thing.color) != (kind.shape == thing.shape)]
    return (*before, similar[int(rng.integers(len(similar)))], *after)


def arranged(things: tuple[Thing, ...], rng: np.random.Generator, relation: str | None) -> list[Placed]:
    """Place objects at random, in a quarter of cases close enough to touch, the first two in a relation if given."""
    smallest, largest = RADII[len(things)]
    distance = 0.8 if rng.random() < 0.25 else 1.15
    for attempt in range(100_000):
        placed = []
        for thing in things:
            radius = rng.uniform(smallest, max(smallest, largest * 0.998**attempt))
            margin = radius * EXTENT[thing.shape] + 1
            x, y = rng.uniform(margin, SIZE - margin, size=2)
            placed.append(Placed(thing, x, y, radius))
        apart = all(
            math.hypot(a.x - b.x, a.y - b.y) > distance * (a.radius + b.radius)
            for i, a in enumerate(placed)
            for b in placed[:i]
        )
        if apart and (relation is None or related(relation, placed[0], placed[1])):
            return placed
    raise AssertionError(f"no arrangement found for {things}")


def _severity(count: int, draw: torch.Generator) -> Tensor:
    """Damage like the base model's: mostly wobbly shapes, and a fifth of the pictures damaged in other aspects."""
    severity = distortions.sample(count, draw).severity * (torch.rand(count, 1, generator=draw) < 0.2)
    for aspect, most, power in ((WOBBLE, 0.65, 1.5), (EDGES, 0.12, 1.0)):
        severity[:, aspect] = severity[:, aspect].maximum(most * torch.rand(count, generator=draw) ** power)
    return severity


def patches(pictures: list[Picture]) -> Patches:
    """Content of the patches of pictures."""
    shape = np.full((len(pictures), GRID, GRID), len(SHAPES))
    color = np.zeros((len(pictures), GRID, GRID), np.int64)
    offset = np.zeros((len(pictures), GRID, GRID, 2), np.float32)
    centre = np.zeros((len(pictures), GRID, GRID), np.float32)
    middle = np.moveaxis(np.mgrid[:GRID, :GRID], 0, -1)[..., ::-1] * PATCH + PATCH / 2  # x, y
    for number, picture in enumerate(pictures):
        color[number] = len(COLORS) + list(BACKGROUNDS).index(picture.background)
        covered = np.full((GRID, GRID), 0.2)  # a patch shows an object that covers a fifth of it
        for item in picture.objects:
            share = coverage(item.thing.shape, item.x, item.y, item.radius)
            share = share.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
            here = share >= covered
            covered = np.maximum(covered, share)
            shape[number][here] = SHAPES.index(item.thing.shape)
            color[number][here] = list(COLORS).index(item.thing.color)
            offset[number][here] = (((item.x, item.y) - middle) / (2 * PATCH))[here]
            centre[number, int(item.y // PATCH), int(item.x // PATCH)] = 1
    return Patches(*(torch.from_numpy(part).flatten(1, 2) for part in (shape, color, offset, centre)))


def agreement(scene: Scene, picture: Picture) -> list[float]:
    """How far a picture shows a scene, in [0, 1].

    Returns:
        Share of the scene's objects that are shown, share of the shown objects that are the scene's, the first of these
        by shape and by colour alone, ratio of the numbers of objects, background, and relation: 1 in the requested
        direction, 0 in the opposite one or without both objects.
    """
    asked, shown = Counter(scene.things), Counter(item.thing for item in picture.objects)
    by_shape, by_color = (
        (Counter(getattr(t, what) for t in scene.things) & Counter(getattr(i.thing, what) for i in picture.objects))
        for what in ("shape", "color")
    )
    common, number, found = (asked & shown).total(), len(scene.things), len(picture.objects)
    return [
        common / number, common / found, by_shape.total() / number, by_color.total() / number,
        min(number, found) / max(number, found), float(scene.background == picture.background),
        _direction(scene, picture),
    ]  # fmt: skip


def _direction(scene: Scene, picture: Picture) -> float:
    """(1 + cosine of the angle to the requested direction) / 2, for the best pair; 1 if none is requested."""
    if scene.relation is None:
        return 1.0
    first, second = ([item for item in picture.objects if item.thing == thing] for thing in scene.things)
    x, y = {"above": (0, 1), "below": (0, -1), "left of": (1, 0), "right of": (-1, 0)}[scene.relation]
    cosines = [
        (x * (b.x - a.x) + y * (b.y - a.y)) / max(1e-6, math.hypot(b.x - a.x, b.y - a.y)) for a in first for b in second
    ]
    return (1 + max(cosines, default=-1.0)) / 2


def mistakes(scene: Scene, picture: Picture) -> float:
    """Number of missing and superfluous objects, wrong backgrounds and (times 1.5) wrong directions."""
    asked, shown = Counter(scene.things), Counter(item.thing for item in picture.objects)
    wrong = (asked - shown).total() + (shown - asked).total() + (scene.background != picture.background)
    return wrong + 1.5 * (1 - _direction(scene, picture))


def _questions(asked: list[tuple[Scene, int]], pictures: list[Picture]) -> Questions:
    nouns = []
    for question, (scene, number) in enumerate(asked):
        words = scene.prompt.replace(",", " ,").split()
        positions = [1 + index for index, word in enumerate(words) if word.removesuffix("s") in SHAPES]
        for position, thing in zip(positions, dict.fromkeys(scene.things), strict=True):
            nouns.append((question, position, sum(item.thing == thing for item in pictures[number].objects)))
    return Questions(
        [scene.prompt for scene, _ in asked],
        torch.tensor([number for _, number in asked]),
        torch.tensor([agreement(scene, pictures[number]) for scene, number in asked]),
        torch.tensor([mistakes(scene, pictures[number]) for scene, number in asked]),
        torch.tensor(nouns),
    )


def ordered(mistakes_: Tensor, damage: Tensor) -> Tensor:
    """Comparisons that are certain: fewer mistakes and not more damage, or equal mistakes and less damage.

    Args:
        mistakes_: (G, P), of P pictures for a prompt.
        damage: (G, P), their damage.

    Returns:
        (G, P, P) bool, whether the first picture is better than the second.
    """
    more = mistakes_[:, None, :] - mistakes_[:, :, None]
    worse = damage[:, None, :] - damage[:, :, None]
    return ((more > 0.1) & (worse > -0.1)) | ((more.abs() <= 0.1) & (worse > 0.1))


class Readers(nn.Module):
    """Linear maps from BLIP's states to what is known of pictures. They are discarded after training."""

    def __init__(self, vision_dim: int, text_dim: int) -> None:
        """Build the maps.

        Args:
            vision_dim: Width of the image tower.
            text_dim: Width of the text tower.
        """
        super().__init__()
        self.widths = [len(SHAPES) + 1, len(COLORS) + len(BACKGROUNDS), 2, 1, 1]
        self.patch, self.mask = nn.Linear(vision_dim, sum(self.widths)), nn.Linear(vision_dim, CELLS**2)
        self.counts = nn.Linear(vision_dim, len(KINDS) * (MOST + 1))
        self.noun, self.match = nn.Linear(text_dim, MOST + 1), nn.Linear(text_dim, 7 + len(ASPECTS))


def position_code(width: int) -> Tensor:
    """Sines and cosines of the patches' coordinates: (64, `width`), a start for position embeddings."""
    frequency = 1.5 * 30 ** -(torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(GRID).float(), torch.arange(GRID).float(), indexing="ij")
    phases = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    return torch.cat([wave(phase) for phase in phases for wave in (torch.sin, torch.cos)], 1)


def vision_loss(blip: BLIP, readers: Readers, batch: Batch) -> tuple[Tensor, Tensor]:
    """Image states (N, 1 + 64, W), and the loss of what `readers` read from them."""
    output = blip.vision(pixel_values=blip.to_pixels(batch.images), output_hidden_states=True)
    states, halfway = output.last_hidden_state, output.hidden_states[2][:, 1:]
    objects = batch.patches.shape < len(SHAPES)
    shape, color, offset, centre, wobble = readers.patch(states[:, 1:]).split(readers.widths, -1)
    weight = torch.ones(max(readers.widths)).index_fill_(0, torch.arange(len(COLORS)), 3.0)
    shape_weight = torch.tensor([3.0] * len(SHAPES) + [1.0])
    severity = batch.severity[:, WOBBLE, None].expand_as(objects)
    mask = readers.mask(F.layer_norm(halfway, halfway.shape[-1:]))
    count_weight = torch.tensor([1.0] + [5.0] * MOST)
    return states, (
        1.5 * F.cross_entropy(shape.flatten(0, 1), batch.patches.shape.flatten(), shape_weight)
        + F.cross_entropy(color.flatten(0, 1), batch.patches.color.flatten(), weight)
        + F.mse_loss(offset[objects], batch.patches.offset[objects])
        + 0.5 * F.binary_cross_entropy_with_logits(centre[..., 0], batch.patches.centre, pos_weight=torch.tensor(8.0))
        + 2 * F.mse_loss(wobble[..., 0][objects], severity[objects])
        + 2 * F.binary_cross_entropy_with_logits(mask, _masks(batch.images))
        + F.cross_entropy(readers.counts(states[:, 0]).view(-1, MOST + 1), batch.counts.flatten(), count_weight)
    )


def _masks(images: Tensor) -> Tensor:
    """Share of each cell that differs from the background: (N, 64, 16)."""
    stands_out = ((images - images[:, :, :2, :2].mean((2, 3), keepdim=True)).abs().amax(1) > 0.25).float()
    return F.unfold(F.avg_pool2d(stands_out[:, None], PATCH // CELLS), CELLS, stride=CELLS).transpose(1, 2)


def loss(blip: BLIP, head: nn.Module, readers: Readers, tokens: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
    """Bradley-Terry loss of the certain comparisons, and the losses of `readers`.

    Args:
        blip: BLIP.
        head: Head of ImageReward.
        readers: Maps to train with them.
        tokens: Ids and mask of the questions' prompts.
        batch: Groups of pictures.
    """
    asked = batch.questions
    states, seen = vision_loss(blip, readers, batch)
    output = blip.text(
        input_ids=tokens[0], attention_mask=tokens[1], encoder_hidden_states=states[asked.picture],
        encoder_attention_mask=torch.ones(len(asked.picture), states.shape[1]), is_decoder=False,
        output_hidden_states=True,
    )  # fmt: skip
    joint, inner = output.last_hidden_state[:, 0], output.hidden_states[2]
    rewards = head(joint).view(-1, PICTURES)
    damage = batch.severity.sum(1)[asked.picture].view(-1, PICTURES)
    better = ordered(asked.mistakes.view(-1, PICTURES), damage)
    ranking = -F.logsigmoid((rewards[:, :, None] - rewards[:, None, :])[better]).mean()
    question, position, number = asked.nouns.T
    counted = F.cross_entropy(readers.noun(inner[question, position]), number)
    agreement_, severity = readers.match(joint).split([7, len(ASPECTS)], 1)
    matched = 2 * ((agreement_ - asked.agreement) ** 2).sum(1).mean()
    damaged = ((severity - batch.severity[asked.picture]) ** 2).sum(1).mean()
    return seen + ranking + counted + 2 * (matched + damaged)
