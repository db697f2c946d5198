"""Answering a benchmark's requests in batches; what is answered is kept, and nothing is asked that the store has."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.ask.answer import Answer
from foveate.ask.batch import batches, parts
from foveate.ask.conversation import Conversation
from foveate.ask.generation import Generation
from foveate.ask.prompt import Prompt
from foveate.ask.templates import check_protocol
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.errors import SettingError, UnsupportedError
from foveate.eval import provenance
from foveate.eval.first import First
from foveate.eval.lmms.setting import Choice
from foveate.eval.store import FULL, Answers
from foveate.runs.listener import Advance, unheard

__all__ = ["Answerer", "Conduct", "Request"]

WINDOW = 8
"""Batches' worth of requests that are read at a time, so that a batch can be of like lengths."""
LONGEST = 1024
"""New tokens where a task names no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How questions are put to the model.

    Attributes:
        protocol: "own" is the model's chat template and processor, "llava" that of LLaVA-1.5's papers.
        batch_size: Most samples a batch.
        most_frames: Most frames of a video.

    Raises:
        UnknownNameError: If there is no such protocol.
        SettingError: If a number is too small.
    """

    protocol: str = "own"
    batch_size: int = 1
    most_frames: int = 32

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        for name in ("batch_size", "most_frames"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is 1 or more; got {getattr(self, name)}.")

    def conditions(self, vlm: VLM) -> dict[str, Any]:
        """All that an answer depends on but for question and method; see `Answers`."""
        return provenance.conditions(vlm) | {"protocol": self.protocol, "most_frames": self.most_frames}


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A question of a benchmark.

    Attributes:
        task, split, document: Where it stands.
        messages: Gives its chat messages, media and all; called once, when its turn has come.
        generation: The task's generation settings.
        ocr: Gives the question and its OCR tokens, where the benchmark has some.
    """

    task: str
    split: str
    document: int
    messages: Callable[[], Sequence[Mapping[str, Any]]]
    generation: Mapping[str, Any]
    ocr: Callable[[], tuple[str, Sequence[str]] | None] = lambda: None

    def decoding(self) -> tuple[int, tuple[str, ...]]:
        """The most new tokens of its answer, and the texts that end it.

        Raises:
            UnsupportedError: If the task asks for anything but greedy decoding.
        """
        settings = self.generation
        warm = (settings.get("temperature") or 0) > 0
        beams = (settings.get("num_beams") or 1) > 1
        if settings.get("do_sample") or warm or beams:
            raise UnsupportedError(
                f"{self.task} asks for sampling or beams; answers here are greedy. Got {json.dumps(dict(settings))}. "
                "Tell lmms-eval: --gen_kwargs temperature=0,do_sample=False,num_beams=1."
            )
        until = settings.get("until") or ()
        if isinstance(until, str):
            until = (until,)
        return int(settings.get("max_new_tokens") or LONGEST), tuple(until)


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """A request whose media are read.

    Attributes:
        name: The name under which its answer is kept.
        longest: Most new tokens of its answer.
        until: Texts that end it.
        conversation: What is said and shown.
    """

    name: str
    longest: int
    until: tuple[str, ...]
    conversation: Conversation


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """A question as the model gets it, and what drops in it."""

    question: _Question
    prompt: Prompt
    method: Method | None


@dataclass(eq=False)
class Answerer:
    """A model under one setting, and what it answered.

    Attributes:
        vlm: The model.
        choice: What drops.
        conduct: How questions are put.
        store: Where answers are kept and looked up; None keeps them in memory only.
        advance: Called with the number of answers that were added.
        records: Every answer so far by task and document.
    """

    vlm: VLM
    choice: Choice = field(default_factory=Choice)
    conduct: Conduct = field(default_factory=Conduct)
    store: Answers | None = None
    advance: Advance = unheard
    records: dict[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in the order of the requests.

        Raises:
            SettingError: If a sample cannot meet the budget.
            UnsupportedError: If a task asks for anything but greedy decoding.
        """
        texts = []
        for window in parts(requests, WINDOW * self.conduct.batch_size):
            questions = [self._question(request) for request in window]
            rows = self._rows(questions)
            for request, question in zip(window, questions, strict=True):
                row = rows[question.name]
                self.records[request.task, request.document] = row
                texts.append(row["answer"])
        return texts

    def _rows(self, questions: Sequence[_Question]) -> dict[str, Mapping[str, Any]]:
        """The records of these questions by name, from the store or anew."""
        rows = {}
        unanswered = []
        for question in questions:
            row = self._stored(self.choice.key, question.name)
            if row is None:
                unanswered.append(question)
            else:
                rows[question.name] = row
                self.advance(1)
        for batch in self._batches(unanswered):
            answered = self._answered(batch)
            if self.store is not None:
                self.store.add(answered)
            rows |= {row["question"]: row for row in answered}
            self.advance(len(answered))
        return rows

    def _stored(self, key: str, name: str) -> Mapping[str, Any] | None:
        """The store's record of a setting's answer."""
        if self.store is None:
            return None
        return self.store.get(key, name)

    def _question(self, request: Request) -> _Question:
        """Read a request's media."""
        conversation = Conversation.of(request.messages(), self.conduct.most_frames)
        ocr = request.ocr() if self.conduct.protocol == "llava" else None
        if ocr is not None:
            conversation = conversation.with_ocr(*ocr)
        longest, until = request.decoding()
        content = conversation.name({"max_new_tokens": longest, "until": until})
        name = f"{request.task}/{request.split}/{request.document}/{content}"
        return _Question(name, longest, until, conversation)

    def _batches(self, questions: Sequence[_Question]) -> Iterator[list[_Sample]]:
        """Samples that can share a batch: one method, one limit, lengths as close as can be."""
        samples = []
        for question in questions:
            prompt = self.vlm.prepare_conversation(question.conversation, protocol=self.conduct.protocol)
            samples.append(_Sample(question, prompt, self.choice.method(prompt.vision_tokens)))
        return batches(
            samples,
            self.conduct.batch_size,
            lambda sample: sample.prompt.inputs,
            lambda sample: (sample.question.longest, sample.method),
        )

    def _answered(self, batch: Sequence[_Sample]) -> list[dict[str, Any]]:
        """A record of each answer to one batch."""
        prompts = [sample.prompt for sample in batch]
        generation = Generation(max_new_tokens=batch[0].question.longest)
        answers = self.vlm.answer_batch(prompts, batch[0].method, generation=generation, first=True)
        return [self._row(sample.question, answer) for sample, answer in zip(batch, answers, strict=True)]

    def _row(self, question: _Question, answer: Answer) -> dict[str, Any]:
        """The record of an answer."""
        method, first = answer.method, answer.first
        assert first is not None
        row: dict[str, Any] = {
            "method": self.choice.key,
            "question": question.name,
            "answer": _until(answer.text, question.until),
            "tokens": list(answer.said),
            "spent": answer.spent,
            "vision_tokens": answer.vision_tokens,
            "retention": answer.retention,
            "flops": answer.flops,
            "media": question.conversation.media_name(),
            "setting": None if method is None else method.to_dict(),
        }
        if self.choice.key == FULL:
            row["first"] = First.of(first).to_dict()
        elif (full := self._stored(FULL, question.name)) is not None:
            row["kl"] = First.from_dict(full["first"]).divergence_of(first)
        return row


def _until(text: str, ends: Sequence[str]) -> str:
    """The text up to the first of its ends."""
    return min((text.partition(end)[0] for end in ends), key=len, default=text).strip()
