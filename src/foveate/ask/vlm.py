"""A model that is asked about pictures: prompts in, answers out, one call at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    Showing,
    answers_to,
    in_parts,
    method_in,
    reply_to,
)
from foveate.ask.second_look import SecondLook
from foveate.ask.stream import Stream
from foveate.ask.wording import QUESTION
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.naming import method_of
from foveate.plain.spelling import check_keywords, refuse_keys
from foveate.plain.upstream import brief

Messages = Sequence[Mapping[str, Any]]
"""A conversation; see `foveate.ask.conversation`."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One of many questions; see `VLM.ask` for its parts."""

    media: Media | None = None
    prompt: str | None = None
    messages: Messages | None = None


class VLM(Loaded):
    """A vision-language model with its processor, ready to be asked.

        vlm = fv.load()
        answer = vlm.ask("cat.jpg", "What is it doing?", method="v2drop", retention=1/3)
        answer.text, answer.retention, answer.saved

    A model serves one call at a time: calls from several threads wait for each other.

    Args:
        model: An unmodified vision-language model of transformers that a family of foveate serves, in evaluation mode.
        processor: Its processor.
        name: What to call it in records; the name of its class if nothing is said.
        cuda_graphs: Run its tower, the decoder's part of a prompt and each step as a CUDA graph; see `foveate.drop`.

    Attributes:
        model, processor, name, cuda_graphs: As given.
        lock: Held while the model or its tokenizer works.

    Raises:
        SettingError: If `cuda_graphs` is asked for on a device that has none.
        UnsupportedError: If no family serves the model.
    """

    # -- asking -----------------------------------------------------------------------------------------------

    @overload
    def ask(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        choices: Sequence[str] = (),
        stream: Literal[False] = False,
        **asking: Unpack[Asking],
    ) -> Answer: ...
    @overload
    def ask(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        stream: Literal[True],
        **asking: Unpack[Asking],
    ) -> Stream: ...
    @overload
    def ask(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        choices: Sequence[str] = (),
        stream: bool,
        **asking: Unpack[Asking],
    ) -> Answer | Stream: ...
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
        """Ask about pictures or films.

            vlm.ask("cat.jpg", "What is it doing?")
            vlm.ask(["a.png", "b.png"], "What changed?", method="v2drop", tokens=192)
            vlm.ask("clip.mp4", "What happens?", frames=32, method="visiondrop", retention=0.2)
            vlm.ask("scan.png", "Is it signed?", choices=["yes", "no"]).choices
            vlm.ask(messages=[{"role": "user", "content": [{"type": "image", "path": "cat.jpg"}, …]}, …])

        Args:
            media: What is looked at: a path, PIL picture, array (height, width, 3) uint8, or clip; or several. [] asks
                a question without any.
            prompt: The question.
            messages: In the place of both: a conversation of several turns, see `foveate.ask.conversation`.
            choices: Texts: the answer is the one that the model finds likeliest, by the probability of all its tokens.
                Where one text begins another ("cat", "cats"), the end of the answer counts as a token of each.
            stream: Return a `Stream` of pieces of text; its `answer` is there at the end.
            **asking: See `foveate.ask.running.Asking`. What drops: `method`, a method or its name (None is the
                untouched model), with a budget for this very input, `tokens` (mean vision tokens that a decoder layer
                processes) or `retention` (their share); a name alone keeps a third. Where the answer is unsure, the
                full model may be asked again: `sure`, or a second look as `method`, see
                `foveate.ask.second_look.SecondLook`. How much of a film is read:
                `frames` at most, `fps` a second; whether a picture is shown whole, on a square: `fit="pad"`. How the
                answer is decoded, greedily by default: `max_new_tokens` (64), `temperature`, `top_p`, `top_k`,
                `num_beams`, `seed`, `stop`.

        Returns:
            The answer; with `stream`, the stream.

        Raises:
            InputError: If a file cannot be read, or the processor refuses it.
            SessionError: If the model is inside an open `foveate.drop`, also one of another thread, or `foveate.apply`.
            SettingError: If settings contradict each other or leave their range; a `BudgetError` where no schedule of
                the method meets the budget.
            UnknownNameError: If there is no method of that name.
            UnsupportedError: If the model cannot serve the method or the media.

        Warns:
            UserWarning: If the model does not see what it was shown, as a cropped picture, or if the method spends more
                or less than the budget by over 2 % and a token. (With `stream`, only the answer says the latter.)
        """
        showing, drops, settings = in_parts(asking)
        settings.refuse_with(choices, stream)
        if isinstance(drops, SecondLook):
            drops.refuse_with(settings, choices, stream)
        asked = self.prepare(media, prompt, messages=messages, **showing)
        asked.warn(stacklevel=2)
        method = method_in(self, drops, asked.vision_tokens)
        if isinstance(drops, SecondLook):
            replies = Answerer(self, drops, settings).replies([asked], lambda prompt, _: prompt)
            reply: Answer | Stream = next(in_order(replies))
        else:
            reply = reply_to(self, asked, method, settings, choices, stream)
        if isinstance(reply, Answer):
            reply.warn(stacklevel=2)
        return reply

    def ask_many(
        self,
        questions: Iterable[Question | tuple[Media, str] | Mapping[str, object]],
        *,
        batch_size: int = 8,
        **asking: Unpack[Asking],
    ) -> Iterator[Answer]:
        """Ask many questions, in batches of prompts that are alike; the answers come in order.

            for answer in vlm.ask_many([("a.png", "What is it?"), ("b.png", "What is it?")], method="v2drop"): ...

        Args:
            questions: (media, prompt) pairs, `Question`s, or mappings with the keys "media", "prompt" and "messages".
                They are read as they are needed: a generator does.
            batch_size: Most questions a batch.
            **asking: As for `ask`; a budget holds for each input.

        Raises:
            FoveateError: As for `ask`.
        """
        if batch_size < 1:
            raise SettingError(f"batch_size must be 1 or more; got {batch_size}.")
        showing, drops, settings = in_parts(asking)
        answerer = Answerer(self, drops, settings, batch_size)

        def prepare(given: object, shelf: dict[object, Any]) -> Prompt:
            question = _as_question(given)
            media = read_once(question.media, showing.get("frames"), showing.get("fps"), shelf)
            prompt = self.prepare(media, question.prompt, messages=question.messages, **showing)
            method_in(self, drops, prompt.vision_tokens)
            return prompt

        return _warn_of_each(in_order(answerer.replies(questions, prepare)))

    @overload
    def look(self, media: Media | None = None, **looking: Unpack[Looking]) -> Prefix: ...
    @overload
    def look(self, *, messages: Messages, **looking: Unpack[Looking]) -> Prefix: ...
    def look(
        self, media: Media | None = None, *, messages: Messages | None = None, **looking: Unpack[Looking]
    ) -> Prefix:
        """Look at pictures or films once, and ask about them any number of times.

            prefix = vlm.look("street.jpg", method="v2drop", retention=0.2)
            prefix.ask("How many cars are there?"), prefix.ask("What does the sign say?")

        An answer is the one that `ask` gives with the same method.

        Args:
            media: What is looked at, as for `ask`.
            messages: In its place: the conversation up to the question, such as what the system says and a turn of the
                user with pictures. The question goes into the last turn of the user, behind them.
            **looking: `method`, `tokens`, `retention`, `frames`, `fps` and `fit`, as for `ask`. A method that reads the
                question is refused.

        Raises:
            FoveateError: As for `ask`.
            SessionError: If the model is inside an open `foveate.drop`.
            SettingError: If there is nothing to look at.
            UnsupportedError: If the model, its chat template or the method needs the question first.
        """
        check_keywords("A look", looking, Looking)
        showing, drops, _ = in_parts(looking)
        if isinstance(drops, SecondLook):
            raise SettingError("A second look is for a question: give it to ask or ask_many, or look with its .method.")
        if messages is not None and media is not None:
            raise SettingError("messages hold pictures and texts: leave media out.")
        if messages is None:
            conversation = conversation_about(self, media, QUESTION, None, showing)
        else:
            conversation = Conversation.of(messages, showing.get("frames"), showing.get("fps")).with_text(QUESTION)
        prompt = self._prepare(conversation, showing)
        prefix = Prefix(self, prompt, method_in(self, drops, prompt.vision_tokens))
        prompt.warn(stacklevel=2)
        return prefix

    # -- step by step -----------------------------------------------------------------------------------------

    def prepare(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        protocol: str = "own",
        **showing: Unpack[Showing],
    ) -> Prompt:
        """A question as the model gets it, to be answered once or several times; arguments as for `ask`.

        Args:
            **showing: `frames`, `fps` and `fit`.
            protocol: "own" is the model's chat template and processor, "llava" the conditions of LLaVA-1.5's papers.

        Raises:
            FoveateError: As for `ask`.
        """
        check_keywords("A prompt", showing, Showing)
        return self._prepare(conversation_about(self, media, prompt, messages, showing), showing, protocol)

    def _prepare(self, conversation: Conversation, showing: Showing, protocol: str = "own") -> Prompt:
        few = showing.get("frames") is None and showing.get("fps") is None
        fit = showing.get("fit", "own")
        return prepare(self, conversation, protocol=protocol, fit=fit, as_pictures=True, few=few)

    def method_for(
        self,
        method: AnyMethod | None,
        vision_tokens: int,
        *,
        tokens: float | None = None,
        retention: float | None = None,
    ) -> Method | None:
        """The method with its budget, which an input of so many vision tokens meets; None is the untouched model.

        Raises:
            BudgetError: If no schedule meets the budget; the message names the floor.
            SettingError: If settings contradict each other, or a budget comes without a method.
        """
        return method_in(self, method_of(method, tokens, retention), vision_tokens)

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
            first: Whether the answer has the log-probabilities of its first token.
        """
        drops = self.method_for(method, prompt.vision_tokens, tokens=tokens, retention=retention)
        recorder = {"logits_processor": [FirstToken()]} if first else {}
        return answers_to(self, [prompt], drops, generation or Generation(), extra=recorder)[0]

    def __repr__(self) -> str:
        about = self.card.to_dict()
        return f"VLM({self.name!r}: {about['model_type']}, {about['dtype']} on {about['device']})"


def _warn_of_each(answers: Iterator[Answer]) -> Iterator[Answer]:
    """The answers, with warnings of what the user should know."""
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
    raise SettingError(f"A question is (media, prompt), a mapping or a Question; got {brief(question)}.")
