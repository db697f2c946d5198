"""How a prompt goes on behind its last picture: the ids of a new question, without the pictures in front of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Loaded
from foveate.ask.look import end_of_pictures
from foveate.ask.prompt import is_vision
from foveate.ask.quiet import quiet
from foveate.ask.templates import text_of
from foveate.errors import InputError, UnsupportedError

__all__ = ["Wording"]

PLACEHOLDERS = ("image_token", "video_token", "boi_token")
"""What processors call the text that stands for a picture or a film."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a model's template and processor write around a question.

    A tokenizer merges no letters across the token of a picture, so what stands behind it can be read alone. Reading it
    from any later place could give other ids: "\\n" and "\\nWhat" begin with different tokens.

    Attributes:
        head: The text in front of every question, up to and with the last placeholder.
        token: The last vision token, as a text.
        closing: What the processor writes behind it, such as "<end_of_image>".
        known: How many tokens of that the look has run, the vision token counted in.
    """

    head: str
    token: str
    closing: str = ""
    known: int = 1

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
        asked, otherwise = (
            text_of(loaded.model, loaded.processor, conversation.with_text(text))
            for text in (question, f"Is {question}")
        )
        end = _end_of_placeholders(loaded, asked)
        head, tail = asked[:end], asked[end:]
        if not otherwise.startswith(head) or end == 0:  # what differs comes from the question
            raise UnsupportedError(
                f"The chat template of {loaded.name} puts the question before the picture, so the model cannot look "
                "before it is asked. Ask with vlm.ask."
            )
        last = int(is_vision(loaded.model.config, ids).nonzero()[-1])
        token = loaded.tokenizer.convert_ids_to_tokens(int(ids[last]))
        behind: list[int] = ids[last + 1 :].tolist()
        plain = cls(head, token)._ids(loaded, tail)
        known = end_of_pictures(loaded.model, ids) - last
        for closing in _closings(loaded, behind, plain):
            wording = cls(head, token, closing, known)
            if wording._ids(loaded, tail) == behind[known - 1 :]:
                return wording
        raise UnsupportedError(
            f"What the processor of {loaded.name} writes behind a picture cannot be made without the picture. "
            "Ask with vlm.ask."
        )

    def rest(self, loaded: Loaded, conversation: Conversation) -> Tensor:
        """The ids of a conversation behind its last picture, (1, tokens) int64 on the model's device.

        Raises:
            InputError: If the texts name a placeholder.
            UnsupportedError: If the template writes another beginning now.
        """
        with loaded.lock, quiet():
            text = text_of(loaded.model, loaded.processor, conversation)
            if not text.startswith(self.head):
                raise UnsupportedError(
                    f"The chat template of {loaded.name} now writes another text before the picture than when the "
                    "model looked, as one with a date or with the question in it. Ask with vlm.ask."
                )
            ids = self._ids(loaded, text[len(self.head) :])
        rest = torch.tensor([ids], dtype=torch.int64)
        if is_vision(loaded.model.config, rest).any():
            raise InputError("A question about pictures that were looked at holds a placeholder of another picture.")
        return rest.to(loaded.model.device)

    def _ids(self, loaded: Loaded, text: str) -> list[int]:
        """The ids of a text behind the look."""
        ids: list[int] = loaded.tokenizer(f"{self.token}{self.closing}{text}", add_special_tokens=False).input_ids
        return ids[self.known :]


def _end_of_placeholders(loaded: Loaded, text: str) -> int:
    """Where the last placeholder of a text ends; 0 without any."""
    ends = [0]
    for name in PLACEHOLDERS:
        token = getattr(loaded.processor, name, None)
        place = -1 if token is None else text.rfind(str(token))
        if place >= 0:
            ends.append(place + len(str(token)))
    return max(ends)


def _closings(loaded: Loaded, behind: list[int], plain: list[int]) -> list[str]:
    """What a processor may have written between its last vision token and the template's text.

    Args:
        loaded: Has the tokenizer.
        behind: The ids behind the vision token.
        plain: Those of the template's text alone.
    """
    alike = 0
    while alike < min(len(behind), len(plain)) and behind[-1 - alike] == plain[-1 - alike]:
        alike += 1
    # Of behind 7 8 2 3 and plain 2 3, 7 8 is closing; where letters merged, it ends a token or two later.
    counts = range(len(behind) - alike, min(len(behind), len(behind) - alike + 3) + 1)
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return [loaded.tokenizer.decode(behind[:count], **options) if count else "" for count in counts]
