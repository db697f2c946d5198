"""Choose the demo picture: the first demo scene with a long text that the full model reads rightly.

python training/demo.py

Writes `src/foveate/embedded/demo.png` and prints the text, which belongs into `foveate.embedded.ANSWER`.
"""

from itertools import count

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from export import import_network
from foveate import embedded
from foveate.embedded.questions import Question
from foveate.embedded.scenes import Scene, scene
from measure import marks
from tokenizer import build

__all__ = ["first", "save"]

CHARACTERS, THINGS = 5, 5  # at least


def first(folder: str) -> tuple[int, Scene]:
    """Number and scene of the first that will do."""
    network, tokenizer = import_network(folder), build()
    for index in count():
        one = scene("demo", index)
        if len(one.things) < THINGS or not one.texts or len(one.texts[0].characters) < CHARACTERS:
            continue
        question = Question("read text", embedded.QUESTION, one.texts[0].characters)
        if all(marks(network, [one], [question], tokenizer)):
            return index, one
    raise AssertionError("count() does not end")


def save(index: int, one: Scene) -> None:
    """Write the picture, its number with it."""
    info = PngInfo()
    info.add_text("index", str(index))
    info.add_text("source", f"foveate.embedded.scenes.scene('demo', {index})")
    Image.fromarray(one.image).save(embedded.picture(), pnginfo=info, optimize=True)


def main() -> None:
    """Choose, write, print."""
    torch.set_num_threads(1)
    index, one = first(embedded.path())
    save(index, one)
    print(f"scene {index}: {one.texts[0].characters}")


if __name__ == "__main__":
    main()
