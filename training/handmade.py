"""An examination of the embedded model by pictures drawn by hand.

    python training/handmade.py [FOLDER] [--out FILE] [--pictures DIR]

Each picture is a few lines of Pillow, as somebody writes them who tries the demo. Its author had read the model card
and nothing of the generator of the training pictures, so the two share no code and no habits. Nothing is random.

FOLDER is a model's folder (default: the embedded model). Printed are a table by group and all wrong answers; an answer
counts only if it is right word for word. `--pictures` writes the pictures and a contact sheet, and asks nothing.
"""

import argparse
import hashlib
import json
import platform
from collections.abc import Callable
from importlib.util import find_spec
from math import cos, pi, sin
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["PICTURES", "QUESTIONS", "Question", "drawn"]

Colour = str | tuple[int, int, int]


class Question(NamedTuple):
    """One question about one picture, and the only answer that is right."""

    picture: str
    group: str
    question: str
    answer: str


PICTURES: dict[str, Callable[[], Image.Image]] = {}
QUESTIONS: list[Question] = []

# Short forms of the questions that need no word of their own.
OBJECTS = "How many objects are there?"
SAYS = "What does the text say?"
TEXT = "Where is the text?"
FIRST, SECOND, THIRD, FOURTH, FIFTH = (
    f"What is the {ordinal} character?" for ordinal in ("first", "second", "third", "fourth", "fifth")
)
ACROSS = "List the objects from left to right."
DOWN = "List the objects from top to bottom."


def picture(group: str, answers: dict[str, str]) -> Callable[[Callable[[], Image.Image]], Callable[[], Image.Image]]:
    """Enter a drawing function in PICTURES, and its questions with their answers in QUESTIONS."""

    def enter(draw: Callable[[], Image.Image]) -> Callable[[], Image.Image]:
        name = draw.__name__
        PICTURES[name] = draw
        QUESTIONS.extend(Question(name, group, question, answer) for question, answer in answers.items())
        return draw

    return enter


def equal(count: int, colour: str, shapes: str) -> dict[str, str]:
    """The three questions about a picture of `count` equal things."""
    asked = (f"How many {shapes} are there?", OBJECTS, f"How many {colour} objects are there?")
    return dict.fromkeys(asked, str(count))


def drawn(name: str) -> Image.Image:
    """The picture of that name."""
    return PICTURES[name]()


# Shapes. (x, y) is the middle, r half the width; without `fill` only the edge is drawn.


def circle(
    image: Image.Image, x: int, y: int, r: int, fill: Colour | None, edge: Colour | None = None, width: int = 1
) -> None:
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill, edge, width)


def square(
    image: Image.Image, x: int, y: int, r: int, fill: Colour | None, edge: Colour | None = None, width: int = 1
) -> None:
    ImageDraw.Draw(image).rectangle((x - r, y - r, x + r, y + r), fill, edge, width)


def corners(image: Image.Image, points: list, fill: Colour | None, edge: Colour | None, width: int) -> None:
    """A polygon; its edge is a closed line with round joints."""
    draw = ImageDraw.Draw(image)
    if fill is not None:
        draw.polygon(points, fill)
    if edge is not None:
        draw.line([*points, points[0], points[1]], edge, width, joint="curve")


def triangle(
    image: Image.Image, x: int, y: int, r: int, fill: Colour | None, edge: Colour | None = None, width: int = 1
) -> None:
    corners(image, [(x, y - r), (x + r, y + r), (x - r, y + r)], fill, edge, width)


def diamond(
    image: Image.Image, x: int, y: int, r: int, fill: Colour | None, edge: Colour | None = None, width: int = 1
) -> None:
    corners(image, [(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill, edge, width)


def cross(
    image: Image.Image, x: int, y: int, r: int, fill: Colour | None, edge: Colour | None = None, width: int = 1
) -> None:
    """A plus; its arms are a third of its width."""
    a = round(r / 3)
    turns = [(-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a), (a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a)]
    corners(image, [(x + right, y + down) for right, down in turns], fill, edge, width)


def star(
    image: Image.Image, x: int, y: int, r: int, fill: Colour | None, edge: Colour | None = None, width: int = 1
) -> None:
    """Five points, the first one up."""
    points = []
    for tip in range(10):
        reach = r if tip % 2 == 0 else 0.4 * r
        points.append((x + reach * sin(tip * pi / 5), y - reach * cos(tip * pi / 5)))
    corners(image, points, fill, edge, width)


def ring(image: Image.Image, x: int, y: int, r: int, colour: Colour) -> None:
    """A thick outline of a circle."""
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(3, round(r / 3)))


def moon(image: Image.Image, x: int, y: int, r: int, colour: Colour, ground: Colour) -> None:
    """A disc, and on it another disc in the colour of the ground."""
    circle(image, x, y, r, colour)
    circle(image, x + r // 2, y - r // 4, round(0.85 * r), ground)


def crescent(image: Image.Image, x: int, y: int, r: int, colour: Colour) -> None:
    """The same moon on a ground that is not even: cut out of a mask."""
    mask = Image.new("L", image.size, 0)
    moon(mask, x, y, r, 255, 0)
    image.paste(colour, (0, 0, *image.size), mask)


# Text.


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font ("Pillow"), or one of the DejaVu fonts that come with matplotlib ("Sans-Bold")."""
    if name == "Pillow":
        return ImageFont.load_default(size)
    folder = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVu{name}.ttf"), size)


def write(
    image: Image.Image, text: str, x: int, y: int, size: int, ink: Colour = "black", face: str = "Pillow"
) -> None:
    """Write `text` with its middle at (x, y)."""
    ImageDraw.Draw(image).text((x, y), text, ink, font(face, size), anchor="mm")


def plate(
    image: Image.Image, box: tuple[int, int, int, int], fill: Colour, edge: Colour | None = None, width: int = 1
) -> None:
    """A rounded plate to write on."""
    ImageDraw.Draw(image).rounded_rectangle(box, 12, fill, edge, width)


# Grounds.


def page(colour: Colour, width: int, height: int | None = None) -> Image.Image:
    """An even ground; a square one without `height`."""
    return Image.new("RGB", (width, height or width), colour)


def gradient(top: tuple, bottom: tuple, width: int, height: int | None = None) -> Image.Image:
    """From one colour to another, downwards."""
    height = height or width
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for y in range(height):
        share = y / (height - 1)
        line = tuple(round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
        draw.line((0, y, width, y), line)
    return image


def noise(dark: tuple, light: tuple, width: int, height: int, blur: float) -> Image.Image:
    """Blurred noise between two colours, from an integer formula."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint64)
    mixed = (x * 7919 + y * 104729 + x * y * 31) * 2654435761
    grains = Image.fromarray(((mixed >> 16) & 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    grey = np.asarray(grains, dtype=float)[..., None]
    share = (grey - grey.min()) / (grey.max() - grey.min())
    return Image.fromarray((np.array(dark) * (1 - share) + np.array(light) * share).astype(np.uint8))


def wood(width: int, height: int) -> Image.Image:
    """Brown grain from sine waves, along the picture."""
    y, x = np.mgrid[0:height, 0:width]
    wave = np.sin(y / 7 + 2 * np.sin(x / 90) + np.sin(x / 37 + y / 50)) + 0.4 * np.sin(y / 2.3 + x / 120)
    share = ((wave + 1.4) / 2.8)[..., None]
    return Image.fromarray(
        (np.array((150, 105, 66)) * (1 - share) + np.array((196, 150, 104)) * share).astype(np.uint8)
    )


def blobs(ground: Colour, spots: list, width: int, height: int, blur: int) -> Image.Image:
    """Large blurred spots (x, y, r, colour), like a picture out of focus."""
    image = page(ground, width, height)
    for x, y, r, colour in spots:
        circle(image, x, y, r, colour)
    return image.filter(ImageFilter.GaussianBlur(blur))


def meadow(width: int, height: int) -> Image.Image:
    """A pale sky with two clouds over a meadow of blades."""
    image = gradient((140, 190, 235), (215, 232, 245), width, height)
    for x, y, r in ((0.2, 0.15, 0.07), (0.27, 0.17, 0.06), (0.7, 0.26, 0.06), (0.77, 0.25, 0.08)):
        circle(image, round(x * width), round(y * height), round(r * width), (236, 241, 246))
    image = image.filter(ImageFilter.GaussianBlur(width // 40))
    grass = noise((96, 132, 62), (150, 178, 98), width, height - round(0.55 * height), 1.5)
    image.paste(grass, (0, round(0.55 * height)))
    return image


# Equal objects.


@picture("equal objects", equal(1, "red", "circles"))
def one_red_circle() -> Image.Image:
    image = page("white", 224)
    circle(image, 112, 112, 40, "red")
    return image


@picture("equal objects", equal(1, "green", "stars"))
def one_green_star() -> Image.Image:
    image = page((235, 235, 235), 300)
    star(image, 90, 210, 35, "green")
    return image


@picture("equal objects", equal(2, "blue", "rings"))
def two_blue_rings() -> Image.Image:
    image = page("white", 250)
    ring(image, 90, 125, 17, "blue")
    ring(image, 160, 125, 17, "blue")
    return image


@picture("equal objects", equal(2, "yellow", "moons"))
def two_yellow_moons() -> Image.Image:
    image = page((40, 44, 52), 512)
    moon(image, 150, 170, 60, "yellow", (40, 44, 52))
    moon(image, 350, 340, 60, "yellow", (40, 44, 52))
    return image


@picture("equal objects", equal(3, "red", "circles"))
def three_red_circles() -> Image.Image:
    image = page("white", 336)
    for x in (70, 168, 266):
        circle(image, x, 168, 30, "red")
    return image


@picture("equal objects", equal(3, "purple", "crosses"))
def three_purple_crosses() -> Image.Image:
    image = page((255, 250, 220), 224)
    for x, y in ((45, 45), (112, 112), (179, 179)):
        cross(image, x, y, 13, "purple")
    return image


@picture("equal objects", equal(4, "purple", "diamonds"))
def four_purple_diamonds() -> Image.Image:
    image = page("white", 480)
    for x in (140, 340):
        for y in (140, 340):
            diamond(image, x, y, 50, (140, 60, 190))
    return image


@picture("equal objects", equal(4, "yellow", "stars"))
def four_yellow_stars() -> Image.Image:
    image = page((20, 30, 80), 1000)
    for x, y in ((180, 220), (520, 380), (800, 180), (640, 780)):
        star(image, x, y, 50, (255, 220, 40))
    return image


@picture("equal objects", equal(5, "blue", "squares"))
def five_blue_squares_in_a_row() -> Image.Image:
    image = page("white", 400)
    for x in (50, 125, 200, 275, 350):
        square(image, x, 200, 24, "blue")
    return image


@picture("equal objects", equal(5, "red", "triangles"))
def five_red_triangles() -> Image.Image:
    image = page((255, 228, 225), 336)
    for x, y in ((60, 70), (200, 60), (280, 160), (110, 200), (220, 280)):
        triangle(image, x, y, 26, (220, 20, 40))
    return image


@picture("equal objects", equal(5, "orange", "diamonds"))
def five_orange_diamonds_like_a_die() -> Image.Image:
    image = page("white", 1200)
    for x, y in ((300, 300), (900, 300), (600, 600), (300, 900), (900, 900)):
        diamond(image, x, y, 110, "orange")
    return image


@picture("equal objects", equal(6, "red", "circles"))
def six_red_circles_in_two_columns() -> Image.Image:
    image = page("white", 600)
    for x in (200, 400):
        for y in (120, 300, 480):
            circle(image, x, y, 28, "red")
    return image


@picture("equal objects", equal(6, "white", "rings"))
def six_white_rings() -> Image.Image:
    image = page((30, 90, 160), 400)
    for x in (80, 200, 320):
        for y in (130, 270):
            ring(image, x, y, 38, "white")
    return image


@picture("equal objects", equal(7, "blue", "circles"))
def seven_blue_circles_scattered() -> Image.Image:
    image = page("white", 500)
    for x, y in ((80, 90), (230, 60), (410, 110), (150, 240), (330, 250), (90, 410), (390, 400)):
        circle(image, x, y, 36, "blue")
    return image


@picture("equal objects", equal(7, "green", "triangles"))
def seven_green_triangles_in_two_rows() -> Image.Image:
    image = page("lavender", 800)
    for x in (130, 310, 490, 670):
        triangle(image, x, 280, 36, "forestgreen")
    for x in (220, 400, 580):
        triangle(image, x, 520, 36, "forestgreen")
    return image


@picture("equal objects", equal(8, "green", "squares"))
def eight_green_squares_on_black() -> Image.Image:
    image = page("black", 640)
    for x in (110, 250, 390, 530):
        for y in (220, 420):
            square(image, x, y, 45, (0, 200, 80))
    return image


@picture("equal objects", equal(8, "red", "crosses"))
def eight_red_crosses_scattered() -> Image.Image:
    image = page("lightgrey", 560)
    for x, y in ((70, 80), (220, 130), (400, 70), (500, 210), (90, 270), (300, 300), (160, 460), (430, 440)):
        cross(image, x, y, 38, (200, 30, 30))
    return image


@picture("equal objects", equal(9, "orange", "circles"))
def nine_orange_circles_in_a_grid() -> Image.Image:
    image = page("white", 450)
    for x in (95, 225, 355):
        for y in (95, 225, 355):
            circle(image, x, y, 20, "darkorange")
    return image


@picture("equal objects", equal(9, "cyan", "stars"))
def nine_cyan_stars_scattered() -> Image.Image:
    image = page("black", 700)
    places = ((90, 100), (300, 80), (560, 120), (180, 280), (430, 270), (620, 350), (100, 520), (330, 480), (540, 590))
    for x, y in places:
        star(image, x, y, 55, "cyan")
    return image


# Mixed objects.


@picture(
    "mixed objects",
    {
        OBJECTS: "4",
        "Where is the red star?": "top left",
        "Where is the green square?": "bottom right",
        "What colour is the circle?": "blue",
        "Is there a red star?": "yes",
        "Is there a blue star?": "no",
    },
)
def four_corners() -> Image.Image:
    image = page("white", 336)
    star(image, 80, 80, 35, "red")
    circle(image, 256, 80, 30, "blue")
    triangle(image, 80, 256, 30, "orange")
    square(image, 256, 256, 28, "green")
    return image


@picture(
    "mixed objects",
    {
        "How many circles are there?": "3",
        "How many squares are there?": "2",
        "How many red objects are there?": "3",
        OBJECTS: "5",
        "Is there a blue square?": "no",
    },
)
def circles_and_squares() -> Image.Image:
    image = page("white", 500)
    circle(image, 100, 120, 45, "red")
    circle(image, 250, 120, 45, "red")
    circle(image, 400, 120, 45, "blue")
    square(image, 170, 340, 42, "red")
    square(image, 330, 340, 42, "green")
    return image


@picture(
    "mixed objects",
    {
        "What is just left of the red circle?": "blue square",
        "What is just right of the blue square?": "red circle",
        OBJECTS: "2",
        "What shape is the blue object?": "square",
        "What colour is the circle?": "red",
    },
)
def square_beside_circle() -> Image.Image:
    image = page("white", 400)
    square(image, 160, 200, 32, "blue")
    circle(image, 240, 200, 32, "red")
    return image


@picture(
    "mixed objects",
    {
        "What is just above the yellow triangle?": "purple ring",
        "What is just below the purple ring?": "yellow triangle",
        "Is there a purple ring?": "yes",
        "Is there a yellow ring?": "no",
    },
)
def ring_over_triangle() -> Image.Image:
    image = page((60, 60, 60), 336)
    ring(image, 110, 90, 26, (170, 80, 220))
    triangle(image, 110, 156, 26, "yellow")
    star(image, 260, 270, 28, "white")
    return image


@picture(
    "mixed objects",
    {
        ACROSS: "red star, blue circle, green square",
        OBJECTS: "3",
        "What colour is the star?": "red",
        "What shape is the green object?": "square",
    },
)
def three_in_a_row() -> Image.Image:
    image = page("white", 600)
    star(image, 110, 300, 60, "red")
    circle(image, 300, 300, 52, "blue")
    square(image, 490, 300, 50, "green")
    return image


@picture(
    "mixed objects",
    {
        DOWN: "yellow circle, white moon, cyan diamond",
        "What shape is the white object?": "moon",
        "What colour is the diamond?": "cyan",
        "Is there a white moon?": "yes",
    },
)
def three_in_a_column_on_navy() -> Image.Image:
    image = page((15, 20, 60), 480)
    circle(image, 240, 90, 42, (255, 230, 0))
    moon(image, 240, 240, 44, "white", (15, 20, 60))
    diamond(image, 240, 390, 50, "cyan")
    return image


@picture(
    "mixed objects",
    {
        "How many stars are there?": "4",
        "How many yellow objects are there?": "5",
        "How many moons are there?": "1",
        "Where is the yellow moon?": "top right",
    },
)
def night_sky() -> Image.Image:
    image = page("midnightblue", 700)
    moon(image, 540, 150, 70, "yellow", "midnightblue")
    for x, y in ((130, 130), (320, 260), (180, 520), (500, 560)):
        star(image, x, y, 45, "yellow")
    return image


@picture(
    "mixed objects",
    {
        OBJECTS: "8",
        "Is there a green ring?": "yes",
        "Is there a red diamond?": "no",
        "What colour is the triangle?": "purple",
        "What shape is the yellow object?": "cross",
        "How many blue objects are there?": "1",
    },
)
def all_eight_shapes() -> Image.Image:
    image = page("lightgrey", 640)
    circle(image, 110, 200, 48, "red")
    square(image, 250, 200, 44, "blue")
    triangle(image, 390, 200, 48, "purple")
    diamond(image, 530, 200, 54, "orange")
    cross(image, 110, 430, 50, "yellow")
    star(image, 250, 430, 55, "white")
    ring(image, 390, 430, 48, "green")
    moon(image, 530, 430, 50, "cyan", "lightgrey")
    return image


@picture(
    "mixed objects",
    {
        "How many crosses are there?": "2",
        "How many green objects are there?": "2",
        "Is there a green cross?": "yes",
        "Is there a white cross?": "yes",
        "How many diamonds are there?": "3",
    },
)
def crosses_and_diamonds() -> Image.Image:
    image = page((200, 120, 120), 448)
    cross(image, 90, 100, 40, (0, 130, 50))
    cross(image, 350, 330, 40, "white")
    diamond(image, 300, 90, 42, (0, 130, 50))
    diamond(image, 110, 340, 42, "blue")
    diamond(image, 225, 215, 42, "blue")
    return image


@picture(
    "mixed objects",
    {
        "What is just right of the green triangle?": "red diamond",
        "What is just above the blue moon?": "orange star",
        "Where is the blue moon?": "bottom right",
        "Where is the red diamond?": "top left",
    },
)
def two_pairs() -> Image.Image:
    image = page((250, 250, 240), 500)
    triangle(image, 90, 100, 32, "green")
    diamond(image, 172, 100, 36, "red")
    star(image, 380, 320, 36, "darkorange")
    moon(image, 380, 400, 34, (40, 80, 220), (250, 250, 240))
    return image


@picture(
    "mixed objects",
    {
        ACROSS: "purple cross, orange ring, red triangle, blue star",
        "What colour is the ring?": "orange",
        "Where is the blue star?": "top right",
    },
)
def four_up_and_down() -> Image.Image:
    image = page("white", 800)
    cross(image, 110, 240, 70, "purple")
    ring(image, 290, 560, 68, "orange")
    triangle(image, 490, 580, 68, "red")
    star(image, 680, 230, 75, "blue")
    return image


@picture(
    "mixed objects",
    {
        DOWN: "green circle, red cross, blue square, purple star",
        "Where is the green circle?": "top right",
        "Where is the purple star?": "bottom right",
        "How many squares are there?": "1",
    },
)
def four_left_and_right() -> Image.Image:
    image = page((225, 240, 225), 560)
    circle(image, 420, 75, 40, (20, 150, 40))
    cross(image, 150, 205, 44, (210, 30, 30))
    square(image, 130, 345, 38, (30, 60, 200))
    star(image, 410, 480, 48, (120, 40, 160))
    return image


@picture(
    "mixed objects",
    {
        "What is just below the red star?": "white circle",
        "What is just above the white circle?": "red star",
        "What is just left of the green diamond?": "yellow square",
        "How many white objects are there?": "1",
    },
)
def pairs_on_slate() -> Image.Image:
    image = page("slategrey", 336)
    star(image, 90, 70, 28, "red")
    circle(image, 90, 132, 24, "white")
    square(image, 200, 250, 22, "yellow")
    diamond(image, 258, 250, 28, (0, 110, 0))
    return image


# Text. Each function says how large and in which font.


@picture("text of one letter", {SAYS: "A", FIRST: "A"})
def letter_a() -> Image.Image:
    image = page("white", 224)
    write(image, "A", 112, 112, 100, "black", "Sans-Bold")
    return image


@picture("text of one letter", {SAYS: "7", FIRST: "7"})
def digit_7() -> Image.Image:
    image = page("white", 336)
    write(image, "7", 168, 168, 60)
    return image


@picture("text of one letter", {SAYS: "R", TEXT: "top left"})
def letter_r_in_a_corner() -> Image.Image:
    image = page("black", 400)
    write(image, "R", 90, 90, 50, "white", "Sans")
    return image


@picture("text of one letter", {SAYS: "K", TEXT: "bottom right"})
def red_letter_k() -> Image.Image:
    image = page((255, 250, 205), 300)
    write(image, "K", 230, 230, 44, "red", "Serif")
    return image


@picture("text of two letters", {SAYS: "HI", FIRST: "H"})
def hi() -> Image.Image:
    image = page("white", 336)
    write(image, "HI", 168, 168, 72)
    return image


@picture("text of two letters", {SAYS: "42", SECOND: "2"})
def forty_two() -> Image.Image:
    image = page("white", 500)
    write(image, "42", 250, 250, 60, "black", "Sans")
    return image


@picture("text of two letters", {SAYS: "B7", SECOND: "7", TEXT: "top right"})
def b7() -> Image.Image:
    image = page("lightblue", 480)
    write(image, "B7", 360, 110, 48, (20, 20, 90), "Sans-Bold")
    return image


@picture("text of two letters", {SAYS: "TV", FIRST: "T"})
def tv() -> Image.Image:
    image = page((70, 20, 90), 640)
    write(image, "TV", 320, 330, 110, "yellow", "SansMono")
    return image


@picture("text of two letters", {SAYS: "NO", FIRST: "N"})
def no() -> Image.Image:
    image = page((245, 245, 245), 256)
    write(image, "NO", 128, 128, 40, "red", "Serif-Bold")
    return image


@picture("text of three letters", {SAYS: "CAT", FIRST: "C", SECOND: "A"})
def cat() -> Image.Image:
    image = page("white", 336)
    write(image, "CAT", 168, 168, 60)
    return image


@picture("text of three letters", {SAYS: "DOG", THIRD: "G"})
def dog() -> Image.Image:
    image = page("white", 336)
    write(image, "DOG", 168, 168, 36, "black", "Sans")
    return image


@picture("text of three letters", {SAYS: "123", SECOND: "2", THIRD: "3"})
def one_two_three() -> Image.Image:
    image = page("white", 224)
    write(image, "123", 112, 112, 40, "black", "Sans")
    return image


@picture("text of three letters", {SAYS: "ABC", FIRST: "A", SECOND: "B", THIRD: "C"})
def abc() -> Image.Image:
    image = page("white", 600)
    write(image, "ABC", 300, 300, 120, "blue", "Sans-Bold")
    return image


@picture("text of three letters", {SAYS: "XYZ", TEXT: "bottom left"})
def xyz() -> Image.Image:
    image = page("black", 448)
    write(image, "XYZ", 110, 350, 44, "white", "SansMono-Bold")
    return image


@picture("text of three letters", {SAYS: "K9X", SECOND: "9", TEXT: "top left"})
def k9x() -> Image.Image:
    image = page((230, 230, 250), 400)
    write(image, "K9X", 95, 80, 42, "purple", "Sans-Bold")
    return image


@picture("text of three letters", {SAYS: "SUN", FIRST: "S", THIRD: "N"})
def sun() -> Image.Image:
    image = gradient((120, 180, 240), (250, 220, 170), 500)
    write(image, "SUN", 250, 250, 80, (180, 40, 0), "Serif-Bold")
    return image


@picture("text of three letters", {SAYS: "BUS", SECOND: "U"})
def bus() -> Image.Image:
    image = page("gold", 800)
    write(image, "BUS", 400, 420, 120, "black", "Sans")
    return image


@picture("text of three letters", {SAYS: "365", FIRST: "3"})
def three_six_five() -> Image.Image:
    image = page("darkgreen", 300)
    write(image, "365", 150, 140, 56, "white", "SansMono")
    return image


@picture("text of three letters", {SAYS: "RED", SECOND: "E", TEXT: "bottom right"})
def red_in_red() -> Image.Image:
    image = page("white", 512)
    write(image, "RED", 390, 400, 50, "red")
    return image


@picture("text of three letters", {SAYS: "W4P", FIRST: "W", THIRD: "P"})
def w4p() -> Image.Image:
    image = page("white", 250)
    write(image, "W4P", 125, 120, 20, "black", "Sans-Bold")
    return image


@picture("text of four letters", {SAYS: "STOP", FIRST: "S", FOURTH: "P"})
def stop() -> Image.Image:
    image = page((190, 20, 30), 500)
    write(image, "STOP", 250, 250, 100, "white", "Sans-Bold")
    return image


@picture("text of four letters", {SAYS: "2025", FOURTH: "5"})
def year() -> Image.Image:
    image = page("white", 336)
    write(image, "2025", 168, 168, 48, "black", "Sans")
    return image


@picture("text of four letters", {SAYS: "EXIT", SECOND: "X"})
def way_out() -> Image.Image:
    image = page((0, 110, 60), 400)
    write(image, "EXIT", 200, 200, 72, "white")
    return image


@picture("text of four letters", {SAYS: "LM3T", THIRD: "3", TEXT: "top right"})
def lm3t() -> Image.Image:
    image = page("lightgrey", 640)
    write(image, "LM3T", 480, 130, 64, (30, 30, 30), "SansMono")
    return image


@picture("text of four letters", {SAYS: "FISH", TEXT: "bottom left"})
def fish() -> Image.Image:
    image = page((200, 230, 255), 448)
    write(image, "FISH", 115, 350, 48, "navy", "Serif")
    return image


@picture("text of five letters", {SAYS: "HELLO", FIRST: "H", FIFTH: "O"})
def hello() -> Image.Image:
    image = page("white", 336)
    write(image, "HELLO", 168, 168, 48)
    return image


@picture("text of five letters", {SAYS: "K7XQ2", THIRD: "X", FOURTH: "Q"})
def k7xq2() -> Image.Image:
    image = page("white", 400)
    write(image, "K7XQ2", 200, 200, 60, "black", "Sans-Bold")
    return image


@picture("text of five letters", {SAYS: "WORLD", SECOND: "O"})
def world() -> Image.Image:
    image = page("black", 600)
    write(image, "WORLD", 300, 290, 110, "cyan", "Sans")
    return image


@picture("text of five letters", {SAYS: "98765", FIRST: "9", TEXT: "top left"})
def nine_down_to_five() -> Image.Image:
    image = page((255, 235, 240), 480)
    write(image, "98765", 130, 100, 48, (130, 0, 60), "SansMono-Bold")
    return image


@picture("text of five letters", {SAYS: "HOUSE", FIFTH: "E"})
def house() -> Image.Image:
    image = page("white", 512)
    write(image, "HOUSE", 256, 256, 72, "green", "Serif-Bold")
    return image


# Plates.


@picture("plates", {SAYS: "P4K", SECOND: "4"})
def number_plate() -> Image.Image:
    image = page((110, 110, 115), 400)
    plate(image, (90, 150, 310, 250), "white", "black", 4)
    write(image, "P4K", 200, 200, 64, "black", "Sans-Bold")
    return image


@picture("plates", {SAYS: "GATE", FIRST: "G", TEXT: "top left"})
def blue_sign() -> Image.Image:
    image = page((220, 215, 200), 500)
    plate(image, (25, 50, 225, 130), (0, 70, 160))
    write(image, "GATE", 125, 90, 54, "white", "Sans")
    return image


@picture("plates", {SAYS: "TAXI", FOURTH: "I"})
def taxi_sign() -> Image.Image:
    image = page("black", 336)
    plate(image, (68, 118, 268, 218), (255, 210, 0))
    write(image, "TAXI", 168, 168, 64, "black")
    return image


@picture("plates", {SAYS: "S3", TEXT: "bottom right"})
def green_badge() -> Image.Image:
    image = gradient((90, 90, 90), (190, 190, 190), 448)
    plate(image, (260, 290, 420, 400), (0, 130, 70), "white", 5)
    write(image, "S3", 340, 345, 70, "white", "Sans-Bold")
    return image


# Outlines.


@picture(
    "outlines",
    {
        "How many triangles are there?": "3",
        OBJECTS: "3",
        "How many blue objects are there?": "3",
    },
)
def three_outlined_triangles() -> Image.Image:
    image = page("white", 400)
    for x in (80, 200, 320):
        triangle(image, x, 200, 40, None, "blue", 4)
    return image


@picture(
    "outlines",
    {
        "What shape is the red object?": "star",
        "What colour is the square?": "green",
        "Where is the green square?": "bottom left",
        ACROSS: "green square, red star",
    },
)
def outlined_star_and_square() -> Image.Image:
    image = page("white", 336)
    square(image, 85, 250, 36, None, "green", 3)
    star(image, 240, 85, 45, None, "red", 3)
    return image


@picture(
    "outlines",
    {
        "What colour is the circle?": "yellow",
        "What shape is the red object?": "diamond",
        OBJECTS: "3",
        "Is there a cyan cross?": "yes",
    },
)
def dark_borders() -> Image.Image:
    image = page("white", 500)
    circle(image, 110, 250, 60, "yellow", "black", 5)
    diamond(image, 255, 250, 65, "red", "black", 5)
    cross(image, 400, 250, 60, "cyan", "black", 5)
    return image


@picture(
    "outlines",
    {
        "How many squares are there?": "4",
        "How many orange objects are there?": "4",
        OBJECTS: "4",
    },
)
def bordered_squares() -> Image.Image:
    image = page((235, 225, 210), 600)
    for x, y in ((150, 160), (430, 140), (170, 430), (440, 450)):
        square(image, x, y, 60, "orange", (60, 30, 0), 6)
    return image


# Big shapes.


@picture("big shapes", {"What colour is the circle?": "red", OBJECTS: "1", "What shape is the red object?": "circle"})
def big_red_circle() -> Image.Image:
    image = page("white", 336)
    circle(image, 168, 168, 110, "red")
    return image


@picture("big shapes", {"What shape is the yellow object?": "star", "Is there a yellow star?": "yes", OBJECTS: "1"})
def big_yellow_star() -> Image.Image:
    image = page("darkblue", 800)
    star(image, 400, 420, 260, "yellow")
    return image


@picture(
    "big shapes",
    {
        "What colour is the square?": "blue",
        "What colour is the triangle?": "green",
        ACROSS: "blue square, green triangle",
        OBJECTS: "2",
    },
)
def big_square_and_triangle() -> Image.Image:
    image = page("white", 500)
    square(image, 130, 250, 90, "blue")
    triangle(image, 365, 250, 95, "green")
    return image


@picture("big shapes", {"What shape is the purple object?": "ring", "How many rings are there?": "1"})
def big_purple_ring() -> Image.Image:
    image = page((240, 240, 200), 448)
    ring(image, 224, 224, 130, "purple")
    return image


# Other formats.


@picture(
    "other formats",
    {
        ACROSS: "red circle, blue triangle, green diamond",
        OBJECTS: "3",
        "What shape is the blue object?": "triangle",
    },
)
def three_on_640_by_480() -> Image.Image:
    image = page("white", 640, 480)
    circle(image, 120, 240, 55, "red")
    triangle(image, 320, 240, 55, "blue")
    diamond(image, 520, 240, 60, "green")
    return image


@picture(
    "other formats",
    {
        "How many stars are there?": "5",
        "How many yellow objects are there?": "5",
        "Is there a yellow moon?": "no",
    },
)
def five_stars_on_1200_by_675() -> Image.Image:
    image = page((30, 30, 70), 1200, 675)
    for x, y in ((160, 180), (420, 460), (610, 200), (830, 480), (1050, 190)):
        star(image, x, y, 80, "yellow")
    return image


@picture(
    "other formats",
    {
        DOWN: "orange circle, purple square, green star",
        "What colour is the square?": "purple",
        OBJECTS: "3",
    },
)
def three_on_480_by_640() -> Image.Image:
    image = page((245, 245, 245), 480, 640)
    circle(image, 240, 120, 60, "orange")
    square(image, 240, 320, 55, "purple")
    star(image, 240, 520, 70, "green")
    return image


@picture("other formats", {SAYS: "OPEN", SECOND: "P", THIRD: "E"})
def open_on_960_by_540() -> Image.Image:
    image = page("white", 960, 540)
    write(image, "OPEN", 480, 270, 120, "black", "Sans-Bold")
    return image


@picture(
    "other formats",
    {
        "Where is the red cross?": "top left",
        "Where is the cyan ring?": "bottom right",
        "What is just right of the red cross?": "white square",
    },
)
def three_on_800_by_600() -> Image.Image:
    image = page((60, 70, 80), 800, 600)
    cross(image, 150, 150, 55, "red")
    square(image, 275, 150, 48, "white")
    ring(image, 620, 450, 60, "cyan")
    return image


# Photo-like grounds.


@picture(
    "photo-like grounds",
    {
        "How many red objects are there?": "3",
        "How many circles are there?": "3",
        "Is there a white star?": "no",
    },
)
def balls_on_a_meadow() -> Image.Image:
    image = meadow(800, 600)
    for x, y in ((170, 460), (390, 400), (620, 490)):
        circle(image, x, y, 55, (215, 25, 30))
    return image


@picture(
    "photo-like grounds",
    {
        "What shape is the blue object?": "diamond",
        "What colour is the star?": "white",
        OBJECTS: "2",
        ACROSS: "white star, blue diamond",
    },
)
def two_on_wood() -> Image.Image:
    image = wood(500, 500)
    star(image, 140, 180, 60, "white")
    diamond(image, 360, 330, 60, (20, 60, 200))
    return image


@picture("photo-like grounds", {SAYS: "R5M", FIRST: "R", THIRD: "M"})
def text_on_concrete() -> Image.Image:
    image = noise((130, 130, 128), (200, 199, 195), 448, 448, 4)
    write(image, "R5M", 224, 224, 90, "black", "Sans-Bold")
    return image


@picture(
    "photo-like grounds",
    {
        "How many yellow objects are there?": "4",
        "How many triangles are there?": "4",
        "What colour is the cross?": "white",
        OBJECTS: "5",
    },
)
def shapes_out_of_focus() -> Image.Image:
    spots = [(90, 100, 110, (60, 70, 110)), (330, 80, 120, (100, 60, 70)), (500, 300, 140, (50, 90, 90))]
    spots += [(150, 380, 150, (80, 60, 100)), (420, 520, 130, (60, 60, 60))]
    image = blobs((40, 50, 60), spots, 600, 600, 40)
    for x, y in ((120, 140), (460, 130), (130, 450), (470, 460)):
        triangle(image, x, y, 50, (255, 225, 30))
    cross(image, 300, 300, 55, "white")
    return image


@picture(
    "photo-like grounds",
    {
        "Where is the white moon?": "top right",
        "How many moons are there?": "1",
        "Is there a white moon?": "yes",
    },
)
def moon_at_dusk() -> Image.Image:
    image = gradient((20, 25, 70), (190, 110, 110), 640)
    ImageDraw.Draw(image).polygon([(0, 640), (0, 560), (200, 500), (380, 570), (640, 520), (640, 640)], (25, 25, 30))
    image = image.filter(ImageFilter.GaussianBlur(3))
    crescent(image, 480, 150, 60, "white")
    return image


# Asking.


def answers(folder: str) -> list[str]:
    """The model's answer to each question of QUESTIONS, in their order."""
    import foveate as fv

    vlm = fv.load(folder)
    asked = ((drawn(question.picture), question.question) for question in QUESTIONS)
    return [answer.text.strip() for answer in vlm.ask_many(asked, batch_size=8, fit="pad")]


def row(marks: list[bool]) -> dict[str, float]:
    """n, right, accuracy and interval, with the keys of measure.py."""
    from measure import interval  # not above: measure.py imports the generator, and drawing must not depend on it

    low, high = interval(sum(marks), len(marks))
    accuracy = sum(marks) / len(marks)
    return {
        "n": len(marks),
        "right": sum(marks),
        "accuracy": round(accuracy, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def table(marks: list[bool]) -> dict[str, dict[str, float]]:
    """One row for each group, in the order of the pictures, and one for all together."""
    groups: dict[str, list[bool]] = {}
    for question, mark in zip(QUESTIONS, marks, strict=True):
        groups.setdefault(question.group, []).append(mark)
    groups["all"] = marks
    return {group: row(members) for group, members in groups.items()}


def contact_sheet(columns: int = 8) -> Image.Image:
    """All pictures, small, each with its name, questions and answers below it."""
    side, below = 230, 130
    rows = -(-len(PICTURES) // columns)
    sheet = page((250, 250, 250), columns * (side + 10), rows * (side + below))
    draw = ImageDraw.Draw(sheet)
    for place, name in enumerate(PICTURES):
        left, top = place % columns * (side + 10) + 5, place // columns * (side + below) + 5
        small = drawn(name)
        small.thumbnail((side, side))
        sheet.paste(small, (left, top))
        draw.rectangle((left, top, left + small.width - 1, top + small.height - 1), outline="grey")
        lines = [name]
        for question in QUESTIONS:
            if question.picture == name:
                lines += wrap(f"{question.question} {question.answer}", 44, subsequent_indent="  ")
        draw.multiline_text((left, top + side + 2), "\n".join(lines), "black", ImageFont.load_default(10))
    return sheet


def write_pictures(folder: Path) -> None:
    """Every picture as a PNG, and `contact-sheet.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        drawn(name).save(folder / f"{name}.png")
    contact_sheet().save(folder / "contact-sheet.png")
    print(f"{len(PICTURES)} pictures and contact-sheet.png in {folder}")


def examine(folder: Path | None) -> dict:
    """Ask everything, print the table and the wrong answers, and return the record."""
    import torch
    import transformers

    from foveate.embedded import path

    given = answers(str(folder) if folder else "embedded")
    rows = table([text == question.answer for text, question in zip(given, QUESTIONS, strict=True)])
    print(f"{'group':<24}{'n':>5}{'right':>7}{'share':>8}   95 % interval")
    for group, numbers in rows.items():
        print(
            f"{group:<24}{numbers['n']:>5}{numbers['right']:>7}{numbers['accuracy']:>8.3f}"
            f"   {numbers['low']:.2f} to {numbers['high']:.2f}"
        )
    wrong = []
    for text, question in zip(given, QUESTIONS, strict=True):
        if text != question.answer:
            wrong.append({**question._asdict(), "given": text})
            print(f"{question.picture}: {question.question} {question.answer}, not {text!r}")
    weights = (folder or Path(path())) / "model.safetensors"
    return {
        "model": str(folder or "embedded"),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "pictures": len(PICTURES),
        "results": rows,
        "wrong": wrong,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="a model's folder (default: the embedded model)")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the pictures and a contact sheet only")
    arguments = parser.parse_args()
    if arguments.pictures:
        write_pictures(arguments.pictures)
        return
    record = examine(arguments.folder)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
