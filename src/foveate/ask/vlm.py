"""A model that is asked about pictures: prompts in, answers out, one call at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Unpack

from foveate._spelling import refuse_keys
from foveate._upstream import brief
from foveate.ask.answer import Answer
from foveate.ask.answering import AnyMethod, answers_to, dropped_in, fitting, method_of, reply_to
from foveate.ask.conversation import Conversation
from foveate.ask.generation import Decoding, Generation, generation_of
from foveate.ask.loaded import Loaded
from foveate.ask.look import can_share, look_at
from foveate.ask.media import Media
from foveate.ask.prefix import QUESTION, WINDOW, Prefix
from foveate.ask.preparing import Fit, conversation_about, prepare
from foveate.ask.prompt import Prompt
from foveate.contract.method import Method
from foveate.errors import SettingError

__all__ = ["VLM", "Question"]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One of many questions; see `VLM.ask` for its parts."""

    media: Media | None = None
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None


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

    Attributes:
        model, processor, name: As given.
        lock: Held while the model or its tokenizer works.

    Raises:
        UnsupportedError: If no family serves the model.
    """

    # -- asking -----------------------------------------------------------------------------------------------

    def ask(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        method: AnyMethod | None = None,
        tokens: float | None = None,
        retention: float | None = None,
        choices: Sequence[str] = (),
        stream: bool = False,
        frames: int | None = None,
        fps: float | None = None,
        fit: Fit = "own",
        **generation: Unpack[Decoding],
    ) -> Any:
        """Ask about pictures or films.

            vlm.ask("cat.jpg", "What is it doing?")
            vlm.ask(["a.png", "b.png"], "What changed?", method="v2drop", tokens=192)
            vlm.ask("clip.mp4", "What happens?", frames=32, method="visiondrop", retention=0.2)
            vlm.ask("scan.png", "Is it signed?", choices=["yes", "no"]).choices
            vlm.ask(messages=[{"role": "user", "content": [{"type": "image", "path": "cat.jpg"}, …]}, …])

        Args:
            media: What is looked at: a path, PIL picture, array (height, width, 3) uint8, or clip; or several. None is
                the embedded model's own picture, and for any other model a question without one.
            prompt: The question.
            messages: In the place of both: a conversation of several turns, see `foveate.ask.conversation`.
            method: What drops vision tokens: a method, or its name (`foveate.contract.naming`); None is the untouched
                model.
            tokens: A budget: mean vision tokens that a decoder layer processes, for this very input.
            retention: The same as a share of the vision tokens. Without either, a name alone keeps a third.
            choices: Texts: the answer is the one that the model finds likeliest, by the probability of all its tokens.
                Where one text begins another ("cat", "cats"), the end of the answer counts as a token of each.
            stream: Return a `Stream` of pieces of text; its `answer` is there at the end.
            frames, fps: How many frames of a film at most, and how many a second; see `foveate.video.read`.
            fit: "pad" shows a picture whole, on a square, where the processor would cut its sides off.
            **generation: How the answer is decoded, greedily by default: `max_new_tokens` (64), `temperature`, `top_p`,
                `top_k`, `num_beams`, `seed`, `stop`; see `foveate.ask.generation.Generation`.

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
        settings = generation_of(generation)
        settings.refuse_with(choices, stream)
        drops = method_of(method, tokens, retention)
        asked = self.prepare(media, prompt, messages=messages, frames=frames, fps=fps, fit=fit)
        asked.warn(stacklevel=2)
        reply = reply_to(self, asked, dropped_in(self, drops, asked.vision_tokens), settings, choices, stream)
        if isinstance(reply, Answer):
            reply.warn(stacklevel=2)
        return reply

    def ask_many(
        self,
        questions: Iterable[Question | tuple[Media, str] | Mapping[str, Any]],
        *,
        batch_size: int = 8,
        method: AnyMethod | None = None,
        tokens: float | None = None,
        retention: float | None = None,
        frames: int | None = None,
        fps: float | None = None,
        fit: Fit = "own",
        **generation: Unpack[Decoding],
    ) -> Iterator[Answer]:
        """Ask many questions, in batches of prompts that are alike; the answers come in order.

            for answer in vlm.ask_many([("a.png", "What is it?"), ("b.png", "What is it?")], method="v2drop"): ...

        Args:
            questions: (media, prompt) pairs, `Question`s, or mappings with the keys "media", "prompt" and "messages".
                They are read as they are needed: a generator does.
            batch_size: Most questions a batch.
            method, tokens, retention, frames, fps, fit, **generation: As for `ask`; a budget holds for each input.

        Raises:
            FoveateError: As for `ask`.
        """
        if batch_size < 1:
            raise SettingError(f"batch_size must be 1 or more; got {batch_size}.")
        drops, settings = method_of(method, tokens, retention), generation_of(generation)
        prompts = self._prompts(questions, drops, frames, fps, fit)
        return self._answers(prompts, batch_size, drops, settings)

    def _prompts(
        self, questions: Iterable[Any], method: Method | None, frames: int | None, fps: float | None, fit: Fit
    ) -> Iterator[Prompt]:
        """Each question as the model gets it; one whose pictures cannot meet the method's budget is refused."""
        for given in questions:
            question = _as_question(given)
            prompt = self.prepare(
                question.media, question.prompt, messages=question.messages, frames=frames, fps=fps, fit=fit
            )
            dropped_in(self, method, prompt.vision_tokens)
            yield prompt

    def _answers(
        self, prompts: Iterator[Prompt], batch_size: int, method: Method | None, settings: Generation
    ) -> Iterator[Answer]:
        while window := list(islice(prompts, WINDOW * batch_size)):
            for prompt in window:
                prompt.warn(stacklevel=2)
            for answer in answers_to(self, window, method, settings, size=batch_size):
                answer.warn(stacklevel=2)
                yield answer

    def look(
        self,
        media: Media | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        method: AnyMethod | None = None,
        tokens: float | None = None,
        retention: float | None = None,
        frames: int | None = None,
        fps: float | None = None,
        fit: Fit = "own",
    ) -> Prefix:
        """Look at pictures or films once, and ask about them any number of times.

            prefix = vlm.look("street.jpg", method="v2drop", retention=0.2)
            prefix.ask("How many cars are there?"), prefix.ask("What does the sign say?")

        An answer is the one that `ask` gives with the same method.

        Args:
            media: What is looked at, as for `ask`.
            messages: In its place: the conversation up to the question, such as what the system says and a turn of the
                user with pictures. The question goes into the last turn of the user, behind them.
            method, tokens, retention, frames, fps, fit: As for `ask`. A method that reads the question is refused.

        Raises:
            FoveateError: As for `ask`.
            SessionError: If the model is inside an open `foveate.drop`.
            SettingError: If there is nothing to look at.
            UnsupportedError: If the model, its chat template or the method needs the question first.
        """
        drops = method_of(method, tokens, retention)
        if messages is None:
            conversation = conversation_about(self, media, QUESTION, None, frames, fps)
        elif media is None:
            conversation = Conversation.of(messages, frames, fps).with_text(QUESTION)
        else:
            raise SettingError("messages hold pictures and texts: leave media out.")
        few = frames is None and fps is None
        prompt = prepare(self, conversation, fit=fit, as_pictures=True, few=few)
        prefix = Prefix(self, prompt, dropped_in(self, drops, prompt.vision_tokens))
        prompt.warn(stacklevel=2)
        return prefix

    # -- step by step -----------------------------------------------------------------------------------------

    def prepare(
        self,
        media: Media | None = None,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        frames: int | None = None,
        fps: float | None = None,
        fit: Fit = "own",
        protocol: str = "own",
    ) -> Prompt:
        """A question as the model gets it, to be answered once or several times; arguments as for `ask`.

        Args:
            protocol: "own" is the model's chat template and processor, "llava" the conditions of LLaVA-1.5's papers.

        Raises:
            FoveateError: As for `ask`.
        """
        conversation = conversation_about(self, media, prompt, messages, frames, fps)
        few = frames is None and fps is None
        return prepare(self, conversation, protocol=protocol, fit=fit, as_pictures=True, few=few)

    def prepare_conversation(self, conversation: Conversation, protocol: str = "own") -> Prompt:
        """A conversation as the model gets it, where films are no pictures; see `prepare`."""
        return prepare(self, conversation, protocol=protocol)

    def look_at(
        self,
        prompt: Prompt,
        method: AnyMethod | None = None,
        *,
        tokens: float | None = None,
        retention: float | None = None,
    ) -> Prefix:
        """Look at what a prompt shows, to ask other questions about it than its own; see `look`."""
        return Prefix(self, prompt, self.method_for(method, prompt.vision_tokens, tokens=tokens, retention=retention))

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
        return dropped_in(self, method_of(method, tokens, retention), vision_tokens)

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
        return answers_to(self, [prompt], drops, generation or Generation(), first=first)[0]

    def answer_batch(
        self,
        prompts: Sequence[Prompt],
        method: Method | None = None,
        *,
        generation: Generation | None = None,
        first: bool = False,
    ) -> list[Answer]:
        """Answer prompts in one batch, padded on the left, or in several where their tensors do not fit together."""
        return answers_to(self, prompts, method, generation or Generation(), first=first)

    def can_share(self, method: Method | None) -> bool:
        """Whether many questions about one picture may share its prefill; see `foveate.ask.look`."""
        return can_share(self.model, method)

    def answer_sharing(
        self,
        prompts: Sequence[Prompt],
        method: Method | None = None,
        *,
        generation: Generation | None = None,
        first: bool = False,
    ) -> list[Answer]:
        """The same for prompts that begin with the same pictures, whose prefill is run only once.

        Raises:
            SettingError: If they do not begin alike.
            UnsupportedError: If they cannot share it.
        """
        with self.lock, fitting(self, prompts[0].inputs):
            look = look_at(self.model, prompts[0].inputs, method)
        return answers_to(self, prompts, method, generation or Generation(), look=look, first=first)

    def __repr__(self) -> str:
        about = self.card.to_dict()
        return f"VLM({self.name!r}: {about['model_type']}, {about['dtype']} on {about['device']})"


def _as_question(question: Any) -> Question:
    if isinstance(question, Question):
        return question
    if isinstance(question, Mapping):
        refuse_keys("A question", question, ("media", "prompt", "messages"))
        return Question(**question)
    if isinstance(question, tuple) and len(question) == 2:
        return Question(*question)
    raise SettingError(f"A question is (media, prompt), a mapping or a Question; got {brief(question)}.")
