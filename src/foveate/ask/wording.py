"""`Wording`: tokenise a further question after a look without processing the images again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Loaded, quiet
from foveate.ask.look import end_of_pictures
from foveate.ask.prompt import is_vision, text_of
from foveate.errors import UnsupportedError

PLACEHOLDERS = ("image_token", "video_token", "boi_token")
"""Attributes of processors that hold the placeholder text of an image or video."""

QUESTION = "What is shown here, and where?"
"""Placeholder question for a look. The model never sees it."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The text that a model's template and processor write before a question.

    With it, the ids of another question need no image. A tokenizer never merges letters across an image token, so the
    text after it can be tokenised alone. Starting any later could give other ids: "\\n" and "\\nWhat" begin with
    different tokens.

    Attributes:
        head: The text before every question, up to and including the last placeholder.
        closing: The last vision token as text, and the text that the processor adds after it, such as
            "<end_of_image>".
        known: How many tokens of `closing` the look has prefilled.
    """

    head: str
    closing: str
    known: int

    @classmethod
    def of(cls, loaded: Loaded, conversation: Conversation, question: str, ids: Tensor) -> "Wording":
        """Derive the wording from a prompt.

        Args:
            loaded: The model and its processor.
            conversation: The prompt without its question.
            question: The question.
            ids: The processor's ids of both, (tokens,) int64.

        Raises:
            UnsupportedError: If the question changes the text before the image, or the ids after the image cannot be
                reproduced without it.
        """
        model, processor = loaded.model, loaded.processor
        asked = text_of(model, processor, conversation.with_text(question))
        otherwise = text_of(model, processor, conversation.with_text(f"Is {question}"))
        end = end_of_head(loaded, asked)
        head, tail = asked[:end], asked[end:]
        if not otherwise.startswith(head) or end == 0:  # two questions, two heads: the question is in the head
            raise UnsupportedError(
                f"The chat template of {loaded.name} puts the question before the picture, so the model cannot look "
                "before it is asked. Ask with vlm.ask."
            )
        last = int(is_vision(model.config, ids).nonzero()[-1])
        known = end_of_pictures(model, ids) - last  # from the last vision token to the look's end
        behind = ids[last + 1 :].tolist()
        wording = cls(head, loaded.tokenizer.convert_ids_to_tokens(int(ids[last])), known)
        if wording.ids(loaded, tail) != behind[known - 1 :]:
            # The processor adds text after images: "<end_of_image>\n\nWhat?" minus the template's "What?".
            words = loaded.tokenizer.decode(behind, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            wording = cls(head, wording.closing + words.removesuffix(tail), known)
            if wording.ids(loaded, tail) != behind[known - 1 :]:
                raise UnsupportedError(
                    f"The text that the processor of {loaded.name} writes after a picture cannot be made without the "
                    "picture. Ask with vlm.ask."
                )
        return wording

    def rest(self, loaded: Loaded, conversation: Conversation) -> Tensor:
        """Return the ids of a conversation after the look, (1, tokens) int64 on the model's device.

        Raises:
            UnsupportedError: If the template now writes a different text before the image.
        """
        with loaded.lock, quiet():
            text = text_of(loaded.model, loaded.processor, conversation)
            if not text.startswith(self.head):
                raise UnsupportedError(
                    f"The chat template of {loaded.name} now writes a different text before the picture than when the "
                    "model looked. It may contain a date or the question. Ask with vlm.ask."
                )
            ids = self.ids(loaded, text.removeprefix(self.head))
        return torch.tensor([ids], dtype=torch.int64, device=loaded.model.device)

    def ids(self, loaded: Loaded, text: str) -> list[int]:
        """Return the ids of a text after the look."""
        ids: list[int] = loaded.tokenizer(f"{self.closing}{text}", add_special_tokens=False).input_ids
        return ids[self.known :]


def end_of_head(loaded: Loaded, text: str) -> int:
    """Return the index after the last placeholder in a text, or 0 without one."""
    processor = loaded.processor
    names = [str(getattr(processor, name)) for name in PLACEHOLDERS if getattr(processor, name, None)]
    return max((text.rfind(name) + len(name) for name in names if name in text), default=0)


def head_of(loaded: Loaded, conversation: Conversation) -> str:
    """Return the text of a conversation before every question, up to and including the last placeholder."""
    text = text_of(loaded.model, loaded.processor, conversation.with_text(QUESTION))
    return text[: end_of_head(loaded, text)]
