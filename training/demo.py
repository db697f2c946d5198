"""Choose the demo picture: the first scene with a long text that the full model and V2Drop at a third read rightly.

So it shows how dropping works where it works, and is no evidence of quality.

python training/demo.py

Writes `src/foveate/embedded/demo.png` and prints the text, which belongs into `foveate.embedded.ANSWER`.
"""

from itertools import count

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import foveate as fv
from foveate import embedded
from foveate.embedded.scenes import Scene, scene

__all__ = ["first", "save"]

CHARACTERS, THINGS = 5, 5  # at least


def first() -> tuple[int, Scene]:
    """Number and scene of the first that will do."""
    vlm = fv.load(embedded.NAME, device="cpu")
    for index in count():
        one = scene("demo", index)
        if len(one.things) < THINGS or not one.texts or len(one.texts[0].characters) < CHARACTERS:
            continue
        picture = Image.fromarray(one.image)
        answers = [vlm.ask(picture, embedded.QUESTION, method=method).text for method in (None, "v2drop")]
        if answers == [one.texts[0].characters] * 2:
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
    index, one = first()
    save(index, one)
    print(f"scene {index}: {one.texts[0].characters}")


if __name__ == "__main__":
    main()
