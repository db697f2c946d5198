"""Answering a benchmark's requests in batches; what is answered is kept, and nothing is asked that the store has."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from foveate.ask.answer import Answer
from foveate.ask.answers import Answerer
from foveate.ask.conversation import Conversation
from foveate.ask.generation import Generation
from foveate.ask.preparing import check_protocol
from foveate.ask.prompt import Prompt
from foveate.ask.running import dropped_in
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.errors import SettingError, UnsupportedError
from foveate.eval import provenance
from foveate.eval.records import FORM, Answers, key_of
from foveate.runs.listener import Advance, unheard

LONGEST = 1024
"""New tokens where a task names no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How benchmarks are run.

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
        return provenance.conditions(vlm) | FORM | {"protocol": self.protocol, "most_frames": self.most_frames}


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
    messages: Callable[[], Sequence[Mapping[str, object]]]
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
        request: The request.
        name: The name under which its answer is kept.
        conversation: What is said and shown.
    """

    request: Request
    name: str
    conversation: Conversation


@dataclass(eq=False)
class RequestAnswerer:
    """A model under one setting, and what it answered.

    Attributes:
        vlm: The model.
        method: What drops, its budget counted on each sample; None is the full model.
        conduct: How questions are put.
        store: Where answers are kept and looked up; None keeps them in memory only.
        advance: Called with the number of answers that were added.
        records: Every answer so far by task and document.
    """

    vlm: VLM
    method: Method | None = None
    conduct: Conduct = field(default_factory=Conduct)
    store: Answers | None = None
    advance: Advance = unheard
    records: dict[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = key_of(self.method)
        self._answerers: dict[int, Answerer] = {}

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in the order of the requests.

        Raises:
            BudgetError: If a sample cannot meet the budget.
            UnsupportedError: If a task asks for anything but greedy decoding.
        """
        for (longest, _), group in groupby(requests, key=Request.decoding):
            for replies in self._answerer(longest).replies(self._unknown(group), self._prepared):
                rows = [self._row(reply.question, reply.answer) for reply in replies]
                if self.store is not None:
                    self.store.add(rows)
                for reply, row in zip(replies, rows, strict=True):
                    self._keep(reply.question.request, row)
        return [self.records[request.task, request.document]["answer"] for request in requests]

    def _answerer(self, longest: int) -> Answerer:
        """Who answers with so many new tokens at most."""
        if longest not in self._answerers:
            settings = Generation(max_new_tokens=longest)
            self._answerers[longest] = Answerer(
                self.vlm, self.method, settings, self.conduct.batch_size, confidence=True
            )
        return self._answerers[longest]

    def _unknown(self, requests: Iterable[Request]) -> Iterator[_Question]:
        """The questions that the store has no answer to; the others' answers are taken from there."""
        for request in requests:
            question = self._question(request)
            row = None
            if self.store is not None:
                row = self.store.get(self.key, question.name)
            if row is None:
                yield question
            else:
                self._keep(request, row)

    def _keep(self, request: Request, row: Mapping[str, object]) -> None:
        self.records[request.task, request.document] = row
        self.advance(1)

    def _question(self, request: Request) -> _Question:
        """Read a request's media."""
        conversation = Conversation.of(request.messages(), self.conduct.most_frames)
        ocr = None
        if self.conduct.protocol == "llava":
            ocr = request.ocr()
        if ocr is not None:
            conversation = conversation.with_ocr(*ocr)
        longest, until = request.decoding()
        content = conversation.name({"max_new_tokens": longest, "until": until})
        return _Question(request, f"{request.task}/{request.split}/{request.document}/{content}", conversation)

    def _prepared(self, question: _Question, _: object) -> Prompt:
        """A question as the model gets it."""
        prompt = self.vlm.prepare_conversation(question.conversation, protocol=self.conduct.protocol)
        dropped_in(self.vlm, self.method, prompt.vision_tokens)
        return prompt

    def _row(self, question: _Question, answer: Answer) -> dict[str, object]:
        """The record of an answer."""
        _, until = question.request.decoding()
        return {
            "method": self.key,
            "question": question.name,
            "answer": min((answer.text.partition(end)[0] for end in until), key=len, default=answer.text).strip(),
            "spent": answer.spent,
            "vision_tokens": answer.vision_tokens,
            "flops": answer.flops,
            "confidence": answer.confidence,
            "tokens": list(answer.said),
            "retention": answer.retention,
            "media": question.conversation.media_name(),
            "setting": None if answer.method is None else answer.method.to_dict(),
        }
