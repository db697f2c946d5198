"""`VLM`: a vision-language model with its processor that answers questions about images and videos."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack, overload

from foveate.ask.answer import Answer
from foveate.ask.answers import Answerer, in_order
from foveate.ask.conversation import Conversation
from foveate.ask.generation import FirstToken, Generation
from foveate.ask.loaded import Loaded
from foveate.ask.media import Media, read_once
from foveate.ask.prefix import Prefix
from foveate.ask.prompt import Prompt, conversation_about, prepare
from foveate.ask.running import (
    AnyMethod,
    Asking,
    Looking,
    Preparing,
    answers_to,
    in_parts,
    method_in,
    reply_to,
)
from foveate.ask.second_look import SecondLook
from foveate.ask.stream import Stream
from foveate.ask.wording import QUESTION
from foveate.contract.method import Method
from foveate.contract.settings import AtLeastOne, Count
from foveate.core.fields import check_call
from foveate.errors import SettingError
from foveate.naming import method_of
from foveate.plain.spelling import refuse_keys
from foveate.plain.upstream import brief

Messages = Sequence[Mapping[str, Any]]
"""A conversation; see `foveate.ask.conversation`."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One question for `VLM.ask_many`; see `VLM.ask` for its parts."""

    media: Media | None = None
    prompt: str | None = None
    messages: Messages | None = None


class Rest(Asking, total=False):
    """The keywords of `VLM.ask` besides `stream`."""

    messages: Messages | None
    choices: Sequence[str]


class VLM(Loaded):
    """A vision-language model with its processor, ready to be asked.

        vlm = fv.load()
        answer = vlm.ask("cat.jpg", "What is it doing?", method="v2drop", retention=1/3)
        answer.text, answer.retention, answer.saved

    A model serves one call at a time: calls from several threads wait for each other.

    Args:
        model: An unmodified vision-language model of transformers that a foveate family supports, in evaluation mode.
        processor: The model's processor.
        name: The model's name in records. The default is the name of its class.
        cuda_graphs: Run the vision tower, the prefill and each decode step as CUDA graphs; see `foveate.drop`.

    Attributes:
        model, processor, name, cuda_graphs: As given.
        lock: Held while the model or its tokenizer runs.

    Raises:
        SettingError: If `cuda_graphs` is set and the device has no CUDA graphs.
        UnsupportedError: If no family supports the model.
    """

    # -- asking -----------------------------------------------------------------------------------------------

    @overload
    def ask(
        self, media: Media | None = ..., prompt: str | None = ..., *, stream: Literal[False] = ..., **rest: Unpack[Rest]
    ) -> Answer: ...
    @overload
    def ask(
        self, media: Media | None = ..., prompt: str | None = ..., *, stream: Literal[True], **rest: Unpack[Rest]
    ) -> Stream: ...
    @overload
    def ask(
        self, media: Media | None = ..., prompt: str | None = ..., *, stream: bool, **rest: Unpack[Rest]
    ) -> Answer | Stream: ...
    @check_call("An answer")
    def ask(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        choices: Sequence[str] = (),
        stream: bool = False,
        **asking: Unpack[Asking],
    ) -> Answer | Stream:
        """Ask a question about images or videos.

            vlm.ask("cat.jpg", "What is it doing?")
            vlm.ask(["a.png", "b.png"], "What changed?", method="v2drop", tokens=192)
            vlm.ask("clip.mp4", "What happens?", frames=32, method="visiondrop", retention=0.2)
            vlm.ask("scan.png", "Is it signed?", choices=["yes", "no"]).choices
            vlm.ask(messages=[{"role": "user", "content": [{"type": "image", "path": "cat.jpg"}, …]}, …])

        Args:
            media: One or several of: a path, a PIL image, an array (height, width, 3) uint8, or a clip. [] asks a
                question without any.
            prompt: The question.
            messages: Instead of `media` and `prompt`: a conversation of several turns; see
                `foveate.ask.conversation`.
            choices: Candidate answers. The answer is the one with the highest total log-probability over its tokens.
                If one choice is the beginning of another ("cat", "cats"), the end of the answer counts as a token too.
            stream: Return a `Stream` of pieces of text. Its `answer` is set at the end.
            **asking: Keywords of `foveate.ask.running.Asking`:

                - Dropping: `method`, a method or its name (None runs the untouched model). A budget for this input:
                  `tokens` (mean vision tokens per decoder layer) or `retention` (their share). A name without a
                  budget keeps a third.
                - Asking the full model again if the answer is uncertain: `sure`, or a `SecondLook` as `method`.
                - Media: `frames` and `fps` limit the frames read from a video. `fit="pad"` pads an image to a square
                  instead of cropping it.
                - `system`: an instruction, as a system turn before everything else.
                - Decoding, greedy by default: `max_new_tokens` (64), `temperature`, `top_p`, `top_k`, `num_beams`,
                  `seed`, `stop`.

        Returns:
            The answer, or a `Stream` if `stream` is set.

        Raises:
            InputError: If a file cannot be read, or the processor refuses it.
            SessionError: If `foveate.drop` (in any thread) or `foveate.apply` is active on the model.
            SettingError: If settings contradict each other or are out of range. `BudgetError` if no schedule of the
                method meets the budget.
            UnknownNameError: If there is no method of that name.
            UnsupportedError: If the model does not support the method or the media.

        Warns:
            UserWarning: If the model does not see all of its input, as with a cropped image. Also if the method misses
                the budget by more than 2 % and one token (with `stream`, see `Answer.missed` instead).
        """
        showing, drops, settings = in_parts(asking)
        settings.refuse_with(choices, stream)
        if isinstance(drops, SecondLook):
            drops.refuse_with(settings, choices, stream)
        asked = self.prepare(media, prompt, messages=messages, **showing)
        asked.warn(stacklevel=3)
        method = method_in(self, drops, asked.vision_tokens)
        if isinstance(drops, SecondLook):
            replies = Answerer(self, drops, settings).replies([asked], lambda prompt, _: prompt)
            reply: Answer | Stream = next(in_order(replies))
        else:
            reply = reply_to(self, asked, method, settings, choices, stream)
        if isinstance(reply, Answer):
            reply.warn(stacklevel=3)
        return reply

    @check_call("An answer")
    def ask_many(
        self,
        questions: Iterable[Question | tuple[Media, str] | Mapping[str, object]],
        *,
        batch_size: AtLeastOne = 8,
        choices: Sequence[str] = (),
        **asking: Unpack[Asking],
    ) -> Iterator[Answer]:
        """Ask many questions, in batches of similar prompts. Yield the answers in the order of the questions.

            for answer in vlm.ask_many([("a.png", "What is it?"), ("b.png", "What is it?")], method="v2drop"): ...

        Args:
            questions: (media, prompt) pairs, `Question`s, or mappings with the keys "media", "prompt" and "messages".
                They are read lazily, so a generator works.
            batch_size: Maximum questions per batch.
            choices: Candidate answers to each question, as for `ask`. A batch runs once if each is one token.
            **asking: As for `ask`. A budget applies to each input. The text of `system` runs once for all.

        Raises:
            FoveateError: As for `ask`.
        """
        showing, drops, settings = in_parts(asking)
        answerer = Answerer(self, drops, settings, batch_size, choices)

        def prepare(given: object, shelf: dict[object, Any]) -> Prompt:
            question = _as_question(given)
            media = read_once(question.media, showing.get("frames"), showing.get("fps"), shelf)
            prompt = self.prepare(media, question.prompt, messages=question.messages, **showing)
            method_in(self, drops, prompt.vision_tokens)
            return prompt

        return _warn_of_each(in_order(answerer.replies(questions, prepare)))

    @check_call("A look")
    def look(
        self, media: Media | None = None, *, messages: Messages | None = None, **looking: Unpack[Looking]
    ) -> Prefix:
        """Prefill images or videos once, and ask any number of questions about them.

            prefix = vlm.look("street.jpg", method="v2drop", retention=0.2)
            prefix.ask("How many cars are there?"), prefix.ask("What does the sign say?")

        The answers equal those of `ask` with the same method.

        Args:
            media: Images or videos, as for `ask`.
            messages: Instead of `media`: the conversation up to the question, such as a system turn and a user turn
                with images. The question is appended to the last user turn, after the images.
            **looking: `method`, `tokens`, `retention`, `frames`, `fps`, `fit` and `system`, as for `ask`. The method
                must not read the question. Several looks with the same `system` run its text once.

        Raises:
            FoveateError: As for `ask`.
            SessionError: If `foveate.drop` is active on the model.
            SettingError: If there is no image or video.
            UnsupportedError: If the model, its chat template or the method needs the question first.
        """
        showing, drops, _ = in_parts(looking)
        if isinstance(drops, SecondLook):
            raise SettingError("A second look needs a question: pass it to ask or ask_many, or its .method to look.")
        question = QUESTION if messages is None else None
        conversation = conversation_about(self, media, question, messages, showing)
        if messages is not None:
            conversation = conversation.with_text(QUESTION)
        prompt = self._prepare(conversation, showing)
        prefix = Prefix(self, prompt, method_in(self, drops, prompt.vision_tokens))
        for note in prefix.notes:
            warnings.warn(note, stacklevel=3)
        return prefix

    # -- step by step -----------------------------------------------------------------------------------------

    @check_call("A prompt")
    def prepare(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        protocol: str = "own",
        **showing: Unpack[Preparing],
    ) -> Prompt:
        """Prepare a question for the model, to be answered once or several times. The arguments are those of `ask`.

        Args:
            **showing: `frames`, `fps`, `fit` and `system`.
            protocol: "own" uses the model's chat template and processor, "llava" the conditions of LLaVA-1.5's papers.

        Raises:
            FoveateError: As for `ask`.
        """
        return self._prepare(conversation_about(self, media, prompt, messages, showing), showing, protocol)

    def _prepare(self, conversation: Conversation, showing: Preparing, protocol: str = "own") -> Prompt:
        few = showing.get("frames") is None and showing.get("fps") is None
        fit = showing.get("fit", "own")
        prompt = prepare(self, conversation, protocol=protocol, fit=fit, as_pictures=True, few=few)
        return replace(prompt, system=showing.get("system"))

    @check_call("A method")
    def method_for(
        self,
        method: AnyMethod | None,
        vision_tokens: Count,
        *,
        tokens: float | None = None,
        retention: float | None = None,
    ) -> Method | None:
        """Return the method with its budget, checked for an input of `vision_tokens`. None is the untouched model.

        Raises:
            BudgetError: If no schedule meets the budget. The message names the lowest possible budget, the floor.
            InputError: If `method` names a file that cannot be read.
            SettingError: If settings contradict each other, or a budget is given without a method.
            UnknownNameError: If there is no method of that name.
        """
        return method_in(self, method_of(method, tokens, retention), vision_tokens)

    @check_call("An answer")
    def answer(
        self,
        prompt: Prompt,
        method: AnyMethod | None = None,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        generation: Generation | None = None,
        first: bool = False,
    ) -> Answer:
        """Answer one prompt; see `ask`.

        Args:
            first: Store the log-probabilities of the first token in `Answer.first`.
        """
        drops = self.method_for(method, prompt.vision_tokens, tokens=tokens, retention=retention)
        recorder = {"logits_processor": [FirstToken()]} if first else {}
        return answers_to(self, [prompt], drops, generation or Generation(), extra=recorder)[0]

    def __repr__(self) -> str:
        about = self.card.to_dict()
        return f"VLM({self.name!r}: {about['model_type']}, {about['dtype']} on {about['device']})"


def _warn_of_each(answers: Iterator[Answer]) -> Iterator[Answer]:
    """Yield the answers, with their warnings."""
    for answer in answers:
        answer.prompt.warn(stacklevel=2)
        answer.warn(stacklevel=2)
        yield answer


def _as_question(question: object) -> Question:
    if isinstance(question, Question):
        return question
    if isinstance(question, Mapping):
        refuse_keys("A question", question, ("media", "prompt", "messages"))
        return Question(**question)
    if isinstance(question, tuple) and len(question) == 2:
        return Question(*question)
    raise SettingError(f"A question must be (media, prompt), a mapping or a Question; got {brief(question)}.")
