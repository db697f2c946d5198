"""Look once, ask many: pictures that a model has looked at, and questions and conversations about them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack, overload

import torch
from torch import Tensor

from foveate.ask.answer import Answer
from foveate.ask.answers import Answerer, in_order
from foveate.ask.conversation import Conversation
from foveate.ask.generation import Decoding, generation_of
from foveate.ask.loaded import Loaded, quiet
from foveate.ask.look import end_of_pictures, look_at, refuse_unshareable, watch
from foveate.ask.prompt import Prompt, check_text, is_vision, length_note, refuse_special, text_of
from foveate.ask.running import fitting, refuse_stale, reply_to
from foveate.ask.stream import Stream
from foveate.contract.method import Method
from foveate.engine.session import refuse_open
from foveate.engine.trace import Trace
from foveate.errors import SettingError, UnsupportedError
from foveate.naming import name_of
from foveate.plain.upstream import brief

QUESTION = "What is shown here, and where?"
"""Stands in the place of a question until there is one; the model never sees it."""

PLACEHOLDERS = ("image_token", "video_token", "boi_token")
"""What processors call the text that stands for a picture or a film."""


class Prefix:
    """Pictures or films that a model has looked at once; `VLM.look` makes it.

        prefix = vlm.look("street.jpg", method="v2drop", retention=0.2)
        prefix.ask("How many cars are there?").text
        for answer in prefix.ask_many(questions, batch_size=8): ...

    The vision tower and the decoder have run over the pictures, and the rows that the method left are kept. A question
    runs on a copy, so that questions know nothing of one another. Any number of prefixes live beside one another.

    Attributes:
        loaded: The model that looked.
        look: What it saw.
        conversation: What was said and shown up to the question.
        media: The pictures and films, in order.
        notes: What the user should know of them, such as that a picture is cropped.
        method: What dropped; None for the untouched model.
    """

    def __init__(self, loaded: Loaded, prompt: Prompt, method: Method | None) -> None:
        """Look at what a prompt shows, whose last text is its question; see `VLM.look`."""
        if not prompt.conversation.media:
            raise SettingError("There is nothing to look at: give a picture or a film.")
        with loaded.lock:  # inside the lock an open context is the caller's own, not another thread's question
            refuse_open(loaded.model)
        refuse_unshareable(loaded.model, method)
        self.loaded = loaded
        self.conversation = prompt.conversation.without_last_text()
        self.media, self.notes, self.method = prompt.media, prompt.notes, method
        with loaded.lock, fitting(loaded, prompt.inputs):
            self._wording = Wording.of(loaded, self.conversation, prompt.text, prompt.inputs["input_ids"][0])
            look = look_at(loaded.model, prompt.inputs, method, loaded.cuda_graphs)
            self.look = watch(look, loaded.model)

    # -- what it is -------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """What the look dropped; empty without dropping."""
        return self.look.trace

    @property
    def nbytes(self) -> int:
        """Bytes of the keys, values and states that it holds."""
        return self.look.nbytes

    @property
    def tokens(self) -> int:
        """Tokens of a prompt that a question does not run any more, vision tokens and the text in front of them."""
        return self.look.tokens

    def __repr__(self) -> str:
        method = "the untouched model"
        if self.method is not None:
            method = name_of(self.method)
        return f"Prefix({self.tokens} tokens of {self.loaded.name!r}, {method}, {self.nbytes / 1e6:.1f} MB)"

    def __deepcopy__(self, memo: object) -> "Prefix":
        return self  # nothing changes it

    # -- asking -----------------------------------------------------------------------------------------------

    @overload
    def ask(
        self,
        question: str,
        *,
        after: Sequence[str] = (),
        choices: Sequence[str] = (),
        stream: Literal[False] = False,
        **decoding: Unpack[Decoding],
    ) -> Answer: ...
    @overload
    def ask(
        self, question: str, *, after: Sequence[str] = (), stream: Literal[True], **decoding: Unpack[Decoding]
    ) -> Stream: ...
    @overload
    def ask(
        self,
        question: str,
        *,
        after: Sequence[str] = (),
        choices: Sequence[str] = (),
        stream: bool,
        **decoding: Unpack[Decoding],
    ) -> Answer | Stream: ...
    def ask(
        self,
        question: str,
        *,
        after: Sequence[str] = (),
        choices: Sequence[str] = (),
        stream: bool = False,
        **decoding: Unpack[Decoding],
    ) -> Answer | Stream:
        """Ask about what was looked at.

        Args:
            question: A text.
            after: What was said before: a question, its answer, the next question, and so on. These texts run again,
                and the pictures do not.
            choices, stream, **decoding: As for `VLM.ask`.

        Returns:
            The answer, or the stream, as `VLM.ask` gives it. `Answer.looked` says how many tokens it had not to run,
            its trace is the look's, and its costs are those of the whole prompt.

        Raises:
            InputError: If the question is no text of Unicode, or names a placeholder.
            SessionError: If the model is inside an open `foveate.drop`, or its weights have changed since.
            SettingError: If the question is empty, or settings do not go together.
            UnsupportedError: If the chat template writes another beginning than at the look.
        """
        settings = generation_of(decoding)
        settings.refuse_with(choices, stream)
        if isinstance(after, str) or len(after) % 2:
            raise SettingError(
                f"after holds questions and answers in turn, an even number of texts; got {brief(after)}."
            )
        prompt = self.prompt(*after, question)
        if stream:  # whose reader is told now; else the look is checked when it is gone on from
            refuse_stale(self.loaded, self.look)
        reply = reply_to(self.loaded, prompt, self.method, settings, choices, stream, self.look)
        if isinstance(reply, Answer):
            reply.warn(stacklevel=2)
        return reply

    def ask_many(
        self, questions: Iterable[str], *, batch_size: int = 8, **decoding: Unpack[Decoding]
    ) -> Iterator[Answer]:
        """Ask many questions, several at a time; the answers come in order.

        The rows of the look are in memory once, however many questions a batch has. Layers with a sliding window and
        recurrent layers are the exceptions: these are small, and repeated. There, questions of one length go together.

        Args:
            questions: Texts. They are read as they are needed: a generator does.
            batch_size: Most questions at a time.
            **decoding: As for `VLM.ask`.

        Raises:
            FoveateError: As for `ask`.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise SettingError(f"batch_size must be 1 or more; got {brief(batch_size)}.")
        if isinstance(questions, str):
            raise SettingError(f"questions are several texts; got one, {brief(questions)}. Use ask.")
        answerer = Answerer(self.loaded, self.method, generation_of(decoding), batch_size)
        return in_order(answerer.replies(questions, lambda question, _: self.prompt(question), look=self.look))

    def prompt(self, *texts: str) -> Prompt:
        """A question as the model gets it; with answers and questions in turn, the last of a conversation."""
        for text in texts:
            check_text(text)
        if not texts or not texts[-1].strip():
            raise SettingError('The question is empty. Ask one, such as "What is it?".')
        refuse_special(self.loaded, texts[-1])
        conversation = self.conversation.with_text(*texts)
        rest = self._wording.rest(self.loaded, conversation)
        ids = torch.cat((self.look.ids, rest), dim=1)
        others = {name: value for name, value in self.look.inputs.items() if value.shape != self.look.ids.shape}
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **others}
        notes = self.notes
        too_long = length_note(self.loaded.model.config.get_text_config(), ids.shape[1])
        if too_long is not None and too_long not in notes:
            notes = (*notes, too_long)
        return Prompt(self.loaded.card, conversation, inputs, self.media, notes)


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
        names = [str(getattr(processor, name)) for name in PLACEHOLDERS if getattr(processor, name, None)]
        end = max((asked.rfind(name) + len(name) for name in names if name in asked), default=0)
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
