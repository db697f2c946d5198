"""What a model's template and processor write around a question, and in front of one more picture."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Loaded, quiet
from foveate.ask.look import end_of_pictures
from foveate.ask.prompt import is_vision, text_of
from foveate.errors import UnsupportedError

PLACEHOLDERS = ("image_token", "video_token", "boi_token")
"""What processors call the text that stands for a picture or a film."""

QUESTION = "What is shown here, and where?"
"""Stands in the place of a question until there is one; the model never sees it."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a model's template and processor write around a question: the ids of another one need no picture.

    A tokenizer merges no letters across the token of a picture, so what stands behind it can be read alone. Reading it
    from any later place could give other ids: "\\n" and "\\nWhat" begin with different tokens.

    Attributes:
        head: The text in front of every question, up to and with the last placeholder.
        closing: The last vision token, as a text, and what the processor writes behind it, such as "<end_of_image>".
        known: How many tokens of that the look has run.
    """

    head: str
    closing: str
    known: int

    @classmethod
    def of(cls, loaded: Loaded, conversation: Conversation, question: str, ids: Tensor) -> "Wording":
        """Read it off a prompt.

        Args:
            loaded: The model and its processor.
            conversation: The prompt, without its question.
            question: What was asked.
            ids: What the processor made of both, (tokens,) int64.

        Raises:
            UnsupportedError: If the question changes what stands before the picture, or the ids behind the picture
                cannot be had without it.
        """
        model, processor = loaded.model, loaded.processor
        asked = text_of(model, processor, conversation.with_text(question))
        otherwise = text_of(model, processor, conversation.with_text(f"Is {question}"))
        end = end_of_head(loaded, asked)
        head, tail = asked[:end], asked[end:]
        if not otherwise.startswith(head) or end == 0:  # what differs comes from the question
            raise UnsupportedError(
                f"The chat template of {loaded.name} puts the question before the picture, so the model cannot look "
                "before it is asked. Ask with vlm.ask."
            )
        last = int(is_vision(model.config, ids).nonzero()[-1])
        known = end_of_pictures(model, ids) - last
        behind = ids[last + 1 :].tolist()
        wording = cls(head, loaded.tokenizer.convert_ids_to_tokens(int(ids[last])), known)
        if wording.ids(loaded, tail) != behind[known - 1 :]:
            # The processor closes its pictures: of "<end_of_image>\n\nWhat?" all but the template's "What?".
            words = loaded.tokenizer.decode(behind, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            wording = cls(head, wording.closing + words.removesuffix(tail), known)
            if wording.ids(loaded, tail) != behind[known - 1 :]:
                raise UnsupportedError(
                    f"What the processor of {loaded.name} writes behind a picture cannot be made without the picture. "
                    "Ask with vlm.ask."
                )
        return wording

    def rest(self, loaded: Loaded, conversation: Conversation) -> Tensor:
        """The ids of a conversation behind its last picture, (1, tokens) int64 on the model's device.

        Raises:
            UnsupportedError: If the template writes another beginning now.
        """
        with loaded.lock, quiet():
            text = text_of(loaded.model, loaded.processor, conversation)
            if not text.startswith(self.head):
                raise UnsupportedError(
                    f"The chat template of {loaded.name} now writes another text before the picture than when the "
                    "model looked, as one with a date or with the question in it. Ask with vlm.ask."
                )
            ids = self.ids(loaded, text.removeprefix(self.head))
        return torch.tensor([ids], dtype=torch.int64, device=loaded.model.device)

    def ids(self, loaded: Loaded, text: str) -> list[int]:
        """The ids of a text behind the look."""
        ids: list[int] = loaded.tokenizer(f"{self.closing}{text}", add_special_tokens=False).input_ids
        return ids[self.known :]


def end_of_head(loaded: Loaded, text: str) -> int:
    """How many letters of a text are up to and with the last placeholder; 0 if there is none."""
    processor = loaded.processor
    names = [str(getattr(processor, name)) for name in PLACEHOLDERS if getattr(processor, name, None)]
    return max((text.rfind(name) + len(name) for name in names if name in text), default=0)


def head_of(loaded: Loaded, conversation: Conversation) -> str:
    """The text of a conversation in front of every question."""
    text = text_of(loaded.model, loaded.processor, conversation.with_text(QUESTION))
    return text[: end_of_head(loaded, text)]
