"""Look once, ask many: pictures that a model has looked at, and questions about them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Unpack

import torch

from foveate.ask.answer import Answer
from foveate.ask.answering import Dropping, Solved, answers_behind, choice_of, fitting
from foveate.ask.conversation import Conversation
from foveate.ask.generation import Generation, Options, settings_behind
from foveate.ask.loaded import Loaded
from foveate.ask.look import Look, look_at, refuse_unshareable, weights_of
from foveate.ask.media import Media
from foveate.ask.pictures import Picture
from foveate.ask.preparing import Fit, check_text, conversation_about, prepare
from foveate.ask.prompt import Prompt, length_note
from foveate.ask.stream import Stream
from foveate.ask.talk import Talk
from foveate.ask.warned import warn_of_budget
from foveate.ask.wording import Wording
from foveate.contract.method import Method
from foveate.engine.session import refuse_open
from foveate.engine.trace import Trace
from foveate.errors import SessionError, SettingError
from foveate.video import Clip

__all__ = ["Prefix"]

QUESTION = "What is shown here, and where?"
"""Stands in the place of a question until there is one; the model never sees it."""

WINDOW = 8
"""Batches' worth of questions that are read at a time, so that a batch can be of like lengths."""


class Prefix:
    """Pictures or films that a model has looked at once; `VLM.look` makes it.

        prefix = vlm.look("street.jpg", method="v2drop", retention=0.2)
        prefix.ask("How many cars are there?").text
        for answer in prefix.ask_many(questions, batch=8): ...

    The vision tower and the decoder have run over the pictures, and the rows that the method left are kept. A question
    runs on a copy, so that questions know nothing of one another. Any number of prefixes live beside one another.

    Attributes:
        loaded: The model that looked.
        look: What it saw.
        conversation: What was said and shown up to the question.
        media: The pictures and films, in order.
        notes: What the user should know of them, such as that a picture is cropped.
        method: What dropped, its schedule solved; None for the untouched model.
        asked_share: The retention that was asked for; None where nothing was.
    """

    def __init__(
        self,
        loaded: Loaded,
        look: Look,
        wording: Wording,
        conversation: Conversation,
        media: Sequence[Picture | Clip] = (),
        notes: Sequence[str] = (),
        solved: Solved | None = None,
    ) -> None:
        self.loaded = loaded
        self.look = look
        self.conversation = conversation
        self.media = tuple(media)
        self.notes = tuple(notes)
        self._wording = wording
        self._weights = weights_of(loaded.model)
        self._solved = solved or Solved()
        self.method: Method | None = self._solved.method
        self.asked_share = self._solved.asked

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        media: Media | None,
        messages: Sequence[Mapping[str, Any]] | None,
        dropping: Dropping,
        frames: int | None = None,
        fps: float | None = None,
        fit: Fit = "own",
    ) -> "Prefix":
        """Look; see `VLM.look`."""
        if messages is None:
            conversation = conversation_about(loaded, media, QUESTION, None, frames, fps)
        elif media is None:
            conversation = Conversation.of(messages, frames, fps).with_text(QUESTION)
        else:
            raise SettingError("messages hold pictures and texts: leave media out.")
        few = frames is None and fps is None
        prompt = prepare(loaded, conversation, fit=fit, as_pictures=True, few=few)
        return cls.of_prompt(prompt, dropping.solved(loaded, prompt.vision_tokens))

    @classmethod
    def of_prompt(cls, prompt: Prompt, solved: Solved) -> "Prefix":
        """Look at what a prompt shows, whose last text is its question; see `VLM.look_at`."""
        loaded, media = prompt.loaded, prompt.conversation.media
        if not media:
            raise SettingError("There is nothing to look at: give a picture or a film.")
        with loaded.lock:  # inside the lock an open context is the caller's own, not another thread's question
            refuse_open(loaded.model)
        refuse_unshareable(loaded.model, solved.method)
        said = prompt.conversation.without_last_text()
        with loaded.lock, fitting(loaded, prompt.inputs):
            wording = Wording.of(loaded, said, prompt.text, prompt.inputs["input_ids"][0])
            look = look_at(loaded.model, prompt.inputs, solved.method)
            return cls(loaded, look, wording, said, prompt.media, prompt.notes, solved)

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
        method = "the untouched model" if self.method is None else self.method.name
        return f"Prefix({self.tokens} tokens of {self.loaded.name!r}, {method}, {self.nbytes / 1e6:.1f} MB)"

    def __deepcopy__(self, memo: Any) -> "Prefix":
        return self  # nothing changes it

    # -- asking -----------------------------------------------------------------------------------------------

    def ask(
        self, question: str, *, choices: Sequence[str] = (), stream: bool = False, **generation: Unpack[Options]
    ) -> Any:
        """Ask about what was looked at.

        Args:
            question: A text.
            choices, stream, **generation: As for `VLM.ask`.

        Returns:
            The answer, or the stream, as `VLM.ask` gives it. `Answer.looked` says how many tokens it had not to run,
            its trace is the look's, and its costs are those of the whole prompt.

        Raises:
            InputError: If the question is no text of Unicode, or names a placeholder.
            SessionError: If the model is inside an open `foveate.drop`, or its weights have changed since.
            SettingError: If the question is empty, or settings do not go together.
            UnsupportedError: If the chat template writes another beginning than at the look.
        """
        answer = self._ask((question,), choices, stream, generation)
        if isinstance(answer, Answer):
            warn_of_budget(answer, stacklevel=2)
        return answer

    def ask_many(self, questions: Iterable[str], *, batch: int = 8, **generation: Unpack[Options]) -> Iterator[Answer]:
        """Ask many questions, several at a time; the answers come in order.

        The rows of the look are in memory once, however many questions a batch has. Layers with a sliding window and
        recurrent layers are the exceptions: these are small, and repeated. There, questions of one length go together.

        Args:
            questions: Texts. They are read as they are needed: a generator does.
            batch: Most questions at a time.
            **generation: As for `VLM.ask`.

        Raises:
            FoveateError: As for `ask`.
        """
        if not isinstance(batch, int) or batch < 1:
            raise SettingError(f"batch must be 1 or more; got {batch!r}.")
        if isinstance(questions, str):
            raise SettingError(f"questions are several texts; got one, {questions!r:.60}. Use ask.")
        return self._answers(iter(questions), batch, settings_behind(generation))

    def _answers(self, questions: Iterator[str], batch: int, settings: Generation) -> Iterator[Answer]:
        while window := list(islice(questions, WINDOW * batch)):
            prompts = [self.prompt(question) for question in window]
            self.refuse_stale()
            yield from answers_behind(self.loaded, self.look, prompts, self._solved, settings, size=batch)

    def talk(self) -> "Talk":
        """A conversation about what was looked at, in which questions build on answers."""
        return Talk(self._ask)

    def prompt(self, *texts: str) -> Prompt:
        """A question as the model gets it; with answers and questions in turn, the last of a conversation."""
        for text in texts:
            if not isinstance(text, str):
                raise SettingError(f"A question is a text; got {text!r:.100}.")
            check_text(text)
        if not texts or not texts[-1].strip():
            raise SettingError('The question is empty. Ask one, such as "What is it?".')
        conversation = self.conversation.with_text(*texts)
        rest = self._wording.rest(self.loaded, conversation)
        ids = torch.cat((self.look.ids, rest), dim=1)
        known = {name: value for name, value in self.look.inputs.items() if value.shape != self.look.ids.shape}
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **known}
        too_long = length_note(self.loaded.model.config.get_text_config(), ids.shape[1])
        notes = [note for note in (too_long,) if note is not None and note not in self.notes]
        return Prompt(self.loaded, conversation, inputs, self.media, (*self.notes, *notes))

    def _ask(self, texts: Sequence[str], choices: Sequence[str], stream: bool, generation: Mapping[str, Any]) -> Any:
        settings = settings_behind(generation)
        settings.refuse_with(choices, stream)
        prompt = self.prompt(*texts)
        self.refuse_stale()
        if stream:
            return Stream(partial(self._streamed, prompt, settings), self.loaded.tokenizer, settings.stop)
        if choices:
            return choice_of(self.loaded, prompt, choices, self._solved, self.look)
        return answers_behind(self.loaded, self.look, [prompt], self._solved, settings)[0]

    def _streamed(self, prompt: Prompt, settings: Generation, streamer: Any, stopping: Any) -> Answer:
        extra = {"streamer": streamer, "stopping_criteria": [stopping]}
        return answers_behind(self.loaded, self.look, [prompt], self._solved, settings, extra=extra)[0]

    def refuse_stale(self) -> None:
        """Refuse to go on inside an open context, or with other weights.

        Raises:
            SessionError: If that is so.
        """
        with self.loaded.lock:
            refuse_open(self.loaded.model)
            if weights_of(self.loaded.model) == self._weights:
                return
        raise SessionError(f"The weights of {self.loaded.name} have changed since it looked. Look again with vlm.look.")
