"""`Prefix`: images and videos that are prefilled once, and answer any number of questions."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, Unpack, cast, overload

import torch

from foveate.ask.answer import Answer
from foveate.ask.answers import Answerer, in_order
from foveate.ask.conversation import Conversation
from foveate.ask.generation import Decoding, Generation
from foveate.ask.growth import GrownPrompt, Seen, coming, forget, going_on, grow, part_of, refuse_unturnable, without
from foveate.ask.loaded import Loaded
from foveate.ask.look import Look, look_at, look_at_system, refuse_unshareable, watch
from foveate.ask.media import Medium, Picture
from foveate.ask.prompt import Prompt, check_texts, length_note
from foveate.ask.running import Showing, fitting, method_in, refuse_stale, reply_to
from foveate.ask.stream import Stream
from foveate.ask.wording import Wording, head_of
from foveate.contract.method import LastFrame, Method
from foveate.contract.settings import AtLeastOne
from foveate.core.fields import check_call
from foveate.engine.copies import join_records
from foveate.engine.hold import refuse_open
from foveate.engine.trace import Trace
from foveate.errors import SettingError
from foveate.naming import method_of, name_of
from foveate.plain.upstream import brief
from foveate.registry import family_for
from foveate.video import Clip


class More(Decoding, total=False):
    """The keywords of `Prefix.ask` besides `after` and `stream`."""

    choices: Sequence[str]


class Prefix:
    """Images or videos that a model has looked at once. `VLM.look` makes it.

        prefix = vlm.look("street.jpg", method="v2drop", retention=0.2)
        prefix.ask("How many cars are there?").text
        for answer in prefix.ask_many(questions, batch_size=8): ...

    The vision tower and the decoder have run over the images, and the cache keeps the rows that the method left. Each
    question runs on a copy of the cache, so questions are independent. A model can have any number of prefixes.

    Attributes:
        loaded: The model that looked.
        look: The prefilled beginning.
        conversation: The conversation up to the question.
        pictures: What each look added, in order: one entry, and one more for each `see`.
        method: The method; None for the untouched model.
    """

    def __init__(self, loaded: Loaded, prompt: Prompt, method: Method | None) -> None:
        """Prefill a prompt without its last text, the question; see `VLM.look`."""
        if not prompt.conversation.media:
            raise SettingError("There is nothing to look at: pass a picture or a film.")
        with loaded.lock:  # with the lock held, an open context is the caller's, not that of another thread
            refuse_open(loaded.model)
        refuse_unshareable(loaded.model, method)
        self.loaded = loaded
        self.conversation = prompt.conversation.without_last_text()
        self.method = method
        with loaded.lock, fitting(loaded, prompt.inputs):
            self._wording = Wording.of(loaded, self.conversation, prompt.text, prompt.inputs["input_ids"][0])
            last = LastFrame()
            system = look_at_system(loaded, prompt, method)
            look = look_at(loaded.model, prompt.inputs, *going_on(method, last, loaded.cuda_graphs), system)
            self.look = watch(look, loaded.model)
        seen = Seen(prompt, self._wording, look.ids, prompt.first, method, last=last)
        self.pictures: tuple[Seen, ...] = (seen.with_record(look),)

    # -- what it is -------------------------------------------------------------------------------------------

    @property
    def media(self) -> tuple[Picture | Clip, ...]:
        """The images and videos, in order."""
        return tuple(medium for seen in self.pictures for medium in seen.prompt.media)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, such as that an image is cropped. Those of forgotten images are gone."""
        return tuple(dict.fromkeys(note for seen in self.pictures for note in seen.notes))

    @property
    def rows(self) -> int:
        """Number of cached rows in the decoder layer that holds most."""
        layers = self.look.cache.layers
        return max(int(layer.keys.shape[-2]) for layer in layers if getattr(layer, "keys", None) is not None)

    @property
    def trace(self) -> Trace:
        """The trace of the look; empty without dropping."""
        return self.look.trace

    @property
    def nbytes(self) -> int:
        """Bytes of the cached keys, values and states."""
        return self.look.nbytes

    @property
    def tokens(self) -> int:
        """Prompt tokens that a question need not run: the vision tokens and the text before them."""
        return self.look.tokens

    def __repr__(self) -> str:
        method = "the untouched model"
        if self.method is not None:
            method = name_of(self.method)
        return f"Prefix({self.tokens} tokens of {self.loaded.name!r}, {method}, {self.nbytes / 1e6:.1f} MB)"

    def __deepcopy__(self, memo: object) -> "Prefix":
        return self  # immutable

    # -- growing ----------------------------------------------------------------------------------------------

    @check_call("A picture")
    def see(
        self,
        medium: Medium,
        *,
        after: Sequence[str] | Conversation = (),
        tokens: float | None = None,
        retention: float | None = None,
        at: float | None = None,
        memory: AtLeastOne | None = None,
        with_texts: bool = False,
        **showing: Unpack[Showing],
    ) -> "Prefix":
        """Look at one more image or video, after those seen before. The earlier ones do not run again.

            live = vlm.look("a.png", method="v2drop", retention=1/3)
            for seconds, frame in camera:
                live = live.see(frame, at=seconds, memory=4096)

        Args:
            medium: A path, PIL image, array or clip, as for `VLM.ask`.
            after: The texts since the last image: a question, its answer, and so on. They run now and stay in the
                prefix. For other turns: what `Conversation.split` returns as following the last image.
            tokens, retention: A budget for this image that replaces the method's.
            at: The frame's time in seconds. A model that reads videos gets the frame as a video of one frame.
            memory: Maximum rows per decoder layer, of images and texts together. The oldest images are forgotten until
                no layer has more.
            with_texts: Forget the texts between a forgotten image and the next one too. Without it, texts stay, and
                fill the memory in the end.
            **showing: `frames`, `fps` and `fit`, as for `VLM.ask`.

        Returns:
            A new prefix. This one does not change.

        Raises:
            FoveateError: As for `VLM.look`.
            SettingError: If the image and the texts that stay have more rows than `memory`.
            UnsupportedError: If the model's looks cannot grow, or `memory` is given and its looks cannot forget.
        """
        loaded = self.loaded
        drops = self.method
        if drops is None:
            method_of(None, tokens, retention)
        elif tokens is not None or retention is not None:
            drops = drops.with_budget(tokens=tokens, retention=retention)
        part = part_of(loaded, medium, at, showing.get("frames"), showing.get("fps"))
        if memory is not None:
            refuse_unturnable(family_for(loaded.model), self.pictures[-1].columns)
        with loaded.lock:
            refuse_stale(loaded, self.look)
            conversation = _append(self.conversation, after)
            seen = coming(loaded, conversation, self._wording, part, at, showing)
            method = method_in(loaded, drops, seen.prompt.vision_tokens)
            seen = replace(seen, method=method, last=LastFrame(self.pictures[-1].last.features))
            look = grow(loaded.model, self.look, (*self.pictures, seen), method, loaded.cuda_graphs)
        pictures = (*self.pictures, seen.with_record(look))
        grown = self._with(pictures, look, conversation.with_media_behind(seen.parts))
        while memory is not None and grown.rows > memory:
            if len(grown.pictures) == 1:
                texts = grown.tokens - seen.prompt.vision_tokens
                raise SettingError(
                    f"The newest picture holds {grown.rows - texts:,} rows and the texts {texts:,}; got "
                    f"memory={memory}. Give more, drop more of the picture, or set with_texts to forget texts too."
                )
            grown = grown.forget(0, with_texts=with_texts)
        return grown

    @check_call("A look")
    def forget(self, picture: int = 0, *, with_texts: bool = False) -> "Prefix":
        """Remove the images of one look: its rows leave every layer, and later rows move to earlier positions.

        Later rows have attended to it, and that stays in them.

        Args:
            picture: Index in `pictures`; the oldest is 0.
            with_texts: Remove the texts between it and the next one too.

        Returns:
            A new prefix. This one does not change.

        Raises:
            SessionError: If `foveate.drop` is active on the model, or the model has changed since the look.
            SettingError: If the index is out of range, or there is only one look.
            UnsupportedError: If the positions of the model's cached rows cannot be changed, or the text around the
                images has other tokens without them.
        """
        loaded, count = self.loaded, len(self.pictures)
        if count == 1:
            raise SettingError("This is the only look, and one must stay. See another picture first.")
        if not -count <= picture < count:
            raise SettingError(f"There are {count} looks, the oldest is 0; got picture={picture}.")
        place = picture % count
        start = sum(len(seen.parts) for seen in self.pictures[:place])
        end = start + len(self.pictures[place].parts)
        if with_texts:
            conversation = self.conversation.without_texts(start, end)
        else:
            conversation = self.conversation.without_media(range(start, end))
        with loaded.lock:
            refuse_stale(loaded, self.look)
            start, end, pictures = without(loaded, self.pictures, place, conversation)
            look = forget(loaded.model, self.look, start, end, pictures)
        return self._with(pictures, look, conversation)

    def _with(self, pictures: tuple[Seen, ...], look: Look, conversation: Conversation) -> "Prefix":
        """Make a prefix of the same model with other looks."""
        other = copy.copy(self)
        trace = Trace()
        trace.graphs = look.trace.graphs
        records = [seen.record for seen in pictures if seen.record is not None]
        if records:
            trace.add(join_records(records, look.cache, [seen.columns for seen in pictures]))
        other.pictures, other.conversation, other.look = pictures, conversation, replace(look, trace=trace)
        other._wording = replace(pictures[-1].wording, head=head_of(self.loaded, conversation))
        return other

    # -- asking -----------------------------------------------------------------------------------------------

    @overload
    def ask(
        self, question: str, *, after: Sequence[str] = ..., stream: Literal[False] = ..., **more: Unpack[More]
    ) -> Answer: ...
    @overload
    def ask(
        self, question: str, *, after: Sequence[str] = ..., stream: Literal[True], **more: Unpack[More]
    ) -> Stream: ...
    @overload
    def ask(
        self, question: str, *, after: Sequence[str] = ..., stream: bool, **more: Unpack[More]
    ) -> Answer | Stream: ...
    @check_call("An answer")
    def ask(
        self,
        question: str,
        *,
        after: Sequence[str] = (),
        choices: Sequence[str] = (),
        stream: bool = False,
        **decoding: Unpack[Decoding],
    ) -> Answer | Stream:
        """Ask a question about the images.

        Args:
            question: The question.
            after: The texts before it: a question, its answer, the next question, and so on. These texts run again;
                the images do not.
            choices, stream, **decoding: As for `VLM.ask`.

        Returns:
            The answer or stream, as from `VLM.ask`. `Answer.looked` is the number of tokens that did not run again.
            The trace is that of the look, and the costs cover the whole prompt.

        Raises:
            InputError: If the question is not valid Unicode, or contains a special token.
            SessionError: If `foveate.drop` is active on the model, or the model has changed since the look.
            SettingError: If the question is empty, or settings contradict each other.
            UnsupportedError: If the chat template now writes a different text before the images.
        """
        settings = Generation(**decoding)
        settings.refuse_with(choices, stream)
        prompt = self.prompt(*_in_turn(after), question)
        if stream:  # raise here, not in the stream's thread; without a stream, `reply_to` checks the look
            refuse_stale(self.loaded, self.look)
        reply = reply_to(self.loaded, prompt, self.method, settings, choices, stream, self.look)
        if isinstance(reply, Answer):
            reply.warn(stacklevel=3)
        return reply

    @check_call("An answer")
    def ask_many(
        self,
        questions: Iterable[str],
        *,
        batch_size: AtLeastOne = 8,
        choices: Sequence[str] = (),
        **decoding: Unpack[Decoding],
    ) -> Iterator[Answer]:
        """Ask many questions, in batches. Return the answers in the order of the questions.

        A batch holds the look's rows in memory once. Only layers with a sliding window or a recurrent state are small
        and repeated for each question. With such layers, a batch has questions of equal length.

        Args:
            questions: Texts, read lazily, so a generator works.
            batch_size: Maximum questions per batch.
            choices: Candidate answers to each question, as for `VLM.ask`. The images run once for all of them.
            **decoding: As for `VLM.ask`.

        Raises:
            FoveateError: As for `ask`.
        """
        answerer = Answerer(self.loaded, self.method, Generation(**decoding), batch_size, choices)
        return in_order(answerer.replies(questions, lambda question, _: self.prompt(question), look=self.look))

    def prompt(self, *texts: str | Conversation) -> Prompt:
        """Prepare a question for the model.

        Args:
            *texts: The question, optionally after earlier questions and answers in turn. For other turns: what
                `Conversation.split` returns as following the last image, in their place.

        Raises:
            FoveateError: As for `ask`.
        """
        if len(texts) == 1 and isinstance(texts[0], Conversation):
            conversation = self.conversation.with_turns(texts[0])
            asked = conversation.texts
        else:
            said = cast(tuple[str, ...], texts)
            conversation = self.conversation.with_text(*said)
            asked = list(said[-1:])
        check_texts(self.loaded, conversation.texts[len(self.conversation.texts) :], asked)
        rest = self._wording.rest(self.loaded, conversation)
        ids = torch.cat((self.look.ids, rest), dim=1)
        others = {name: value for name, value in self.look.inputs.items() if value.shape != self.look.ids.shape}
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **others}
        notes = tuple(dict.fromkeys(note for seen in self.pictures for note in seen.prompt.notes))
        too_long = length_note(self.loaded.model.config.get_text_config(), ids.shape[1])
        if too_long is not None and too_long not in notes:
            notes = (*notes, too_long)
        if len(self.pictures) == 1:
            return Prompt(self.loaded.card, conversation, inputs, self.media, notes)
        alone, methods = zip(*((seen.prompt, seen.method) for seen in self.pictures), strict=True)
        return GrownPrompt(self.loaded.card, conversation, inputs, self.media, notes, pictures=alone, methods=methods)


def _append(conversation: Conversation, after: Sequence[str] | Conversation) -> Conversation:
    if isinstance(after, Conversation):
        return conversation.with_turns(after)
    return conversation.with_text(*_in_turn(after))


def _in_turn(after: Sequence[str]) -> Sequence[str]:
    """Check that texts are questions and answers in turn.

    Raises:
        SettingError: If their number is odd.
    """
    if len(after) % 2:
        raise SettingError(f"after must be questions and answers in turn, an even number of texts; got {brief(after)}.")
    return after
