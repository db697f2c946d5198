"""What is asked about: a picture or a film, where it came from, and questions that fit it."""

from dataclasses import dataclass

from PIL import Image

from foveate.ask.pictures import Picture
from foveate.video import Clip

__all__ = ["Subject"]


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A picture or film.

    Attributes:
        key: What tells it from all others.
        name: What it is called on the page.
        medium: It, as a model is shown it.
        source: Lines of Python after which `picture` is it.
        notes: What the user should know, such as that it was scaled down.
        questions: Questions that fit it, each with its right answer; none where that is not known.
    """

    key: str
    name: str
    medium: Picture | Clip
    source: str
    notes: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()

    @property
    def pictures(self) -> list[Image.Image]:
        """It as one picture, or its frames."""
        if isinstance(self.medium, Clip):
            return self.medium.images()
        return [self.medium.image]

    def right_answer(self, question: str) -> str | None:
        """The right answer to a question, where it is known."""
        return dict(self.questions).get(question.strip())
