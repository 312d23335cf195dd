"""Synthetic scenes with captions, for a demonstration that needs no data.

A scene is two coloured shapes of some size on a plain background, one beside, above or below
the other. Five sentences of a small grammar say so in different words.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

SIDE = 96  # pixels
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (250, 204, 21),
    "purple": (140, 60, 190),
    "white": (248, 248, 248),
}
SHAPES = ("circle", "square", "triangle")
RADII = {"small": 11, "large": 20}  # pixels
BACKGROUND = (58, 58, 62)
# The relation of the first shape to the second, its inverse, and the centres of the two.
RELATIONS = {
    "left of": ("right of", (25, 48), (71, 48)),
    "above": ("below", (48, 25), (48, 71)),
}


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    size: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    first: Thing
    second: Thing
    relation: str

    @classmethod
    def random(cls, dice: Random) -> Scene:
        def thing() -> Thing:
            return Thing(dice.choice(list(COLOURS)), dice.choice(SHAPES), dice.choice(list(RADII)))

        return cls(thing(), thing(), dice.choice(list(RELATIONS)))

    def captions(self) -> list[str]:
        """Five wordings of what there is to see."""
        one, two, relation = self.first, self.second, self.relation
        inverse = RELATIONS[relation][0]
        return [
            f"A {one} is {relation} a {two}.",
            f"There is a {one} {relation} a {two}.",
            f"A {two} is {inverse} a {one}.",
            f"The {one} sits {relation} the {two}.",
            f"A {one} and a {two}, one {relation} the other.",
        ]

    def draw(self, dice: Random) -> Image.Image:
        """The scene as an RGB image of ``SIDE`` pixels, its shapes a little off their places."""
        image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
        pen = ImageDraw.Draw(image)
        _, first, second = RELATIONS[self.relation]
        for thing, (x, y) in ((self.first, first), (self.second, second)):
            x, y = x + dice.randint(-3, 3), y + dice.randint(-3, 3)
            radius, fill = RADII[thing.size], COLOURS[thing.colour]
            box = (x - radius, y - radius, x + radius, y + radius)
            if thing.shape == "circle":
                pen.ellipse(box, fill)
            elif thing.shape == "square":
                pen.rectangle(box, fill)
            else:
                pen.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill)
        return image


def write(directory: Path, count: int, seed: int) -> None:
    """Write ``Images/*.png`` and ``captions.txt``, in the layout of Flickr8k."""
    dice = Random(seed)
    images = directory / "Images"
    images.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["image", "caption"])
    for number in range(count):
        scene, name = Scene.random(dice), f"scene-{number:04d}.png"
        scene.draw(dice).save(images / name)
        rows.writerows([name, caption] for caption in scene.captions())
    (directory / "captions.txt").write_text(text.getvalue(), encoding="utf-8")
