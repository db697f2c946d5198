"""Answer a benchmark's requests in batches, store the answers, and reuse stored ones."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from foveate.ask.answer import Answer
from foveate.ask.answers import Answerer
from foveate.ask.conversation import Conversation
from foveate.ask.generation import Generation
from foveate.ask.prompt import Prompt, prepare
from foveate.ask.running import method_in
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.errors import UnsupportedError
from foveate.eval import provenance
from foveate.eval.records import FORM, Answers, key_of
from foveate.runs.listener import Advance, unheard

LONGEST = 1024
"""Maximum new tokens if a task has no limit."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A question of a benchmark.

    Attributes:
        task, split, document: Its place in the benchmark.
        messages: Returns its chat messages with media. Called once, when the question's turn comes.
        generation: The task's generation settings.
        ocr: Returns the question and its OCR tokens, or None if the benchmark has none.
    """

    task: str
    split: str
    document: int
    messages: Callable[[], Sequence[Mapping[str, object]]]
    generation: Mapping[str, Any]
    ocr: Callable[[], tuple[str, Sequence[str]] | None] = lambda: None

    def decoding(self) -> tuple[int, tuple[str, ...]]:
        """Return the maximum new tokens of the answer, and the texts that end it.

        Raises:
            UnsupportedError: If the task needs anything but greedy decoding.
        """
        settings = self.generation
        warm = (settings.get("temperature") or 0) > 0
        beams = (settings.get("num_beams") or 1) > 1
        if settings.get("do_sample") or warm or beams:
            raise UnsupportedError(
                f"{self.task} asks for sampling or beams; answers here are greedy. Got {json.dumps(dict(settings))}. "
                "Run lmms-eval with --gen_kwargs temperature=0,do_sample=False,num_beams=1."
            )
        until = settings.get("until") or ()
        if isinstance(until, str):
            until = (until,)
        return int(settings.get("max_new_tokens") or LONGEST), tuple(until)


_Question = tuple[Request, str, Conversation]
"""A request, the key of its answer, and its conversation with media read."""


@dataclass(eq=False)
class RequestAnswerer:
    """Answers requests with one model and one setting.

    Attributes:
        vlm: The model.
        method: The method, whose budget applies to each sample; None is the full model.
        protocol: "own" uses the model's chat template and processor, "llava" the conditions of LLaVA-1.5's papers.
        batch_size: Maximum samples per batch.
        most_frames: Maximum frames of a video.
        store: The store of answers; None keeps them in memory only.
        advance: Called with the number of answers added.
        records: All answers so far, by task and document.
    """

    vlm: VLM
    method: Method | None = None
    protocol: str = "own"
    batch_size: int = 1
    most_frames: int = 32
    store: Answers | None = None
    advance: Advance = unheard
    records: dict[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)

    def conditions(self) -> dict[str, Any]:
        """Return everything an answer depends on, except question and method; see `Answers`."""
        asked = {"protocol": self.protocol, "most_frames": self.most_frames}
        return provenance.conditions(self.vlm) | FORM | asked

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """Answer requests, in their order.

        Raises:
            BudgetError: If a sample cannot meet the budget.
            UnsupportedError: If a task needs anything but greedy decoding.
        """
        answerers: dict[int, Answerer] = {}
        for (longest, _), group in groupby(requests, key=Request.decoding):
            if longest not in answerers:
                settings = Generation(max_new_tokens=longest)
                answerers[longest] = Answerer(self.vlm, self.method, settings, self.batch_size, confidence=True)
            for replies in answerers[longest].replies(self._unknown(group), self._prepare):
                rows = [self._row(reply.question, reply.answer) for reply in replies]
                if self.store is not None:
                    self.store.add(rows)
                for reply, row in zip(replies, rows, strict=True):
                    self._keep(reply.question[0], row)
        return [self.records[request.task, request.document]["answer"] for request in requests]

    def _unknown(self, requests: Iterable[Request]) -> Iterator[_Question]:
        """Yield the questions without a stored answer. Record the stored answers of the others."""
        for request in requests:
            conversation = Conversation.of(request.messages(), self.most_frames)
            if self.protocol == "llava" and (ocr := request.ocr()) is not None:
                conversation = conversation.with_ocr(*ocr)
            longest, until = request.decoding()
            content = conversation.name({"max_new_tokens": longest, "until": until})
            name = f"{request.task}/{request.split}/{request.document}/{content}"
            row = None if self.store is None else self.store.get(key_of(self.method), name)
            if row is None:
                yield request, name, conversation
            else:
                self._keep(request, row)

    def _keep(self, request: Request, row: Mapping[str, object]) -> None:
        self.records[request.task, request.document] = row
        self.advance(1)

    def _prepare(self, question: _Question, _: object) -> Prompt:
        """Prepare a question for the model, and check the method's budget."""
        prompt = prepare(self.vlm, question[2], protocol=self.protocol)
        method_in(self.vlm, self.method, prompt.vision_tokens)
        return prompt

    def _row(self, question: _Question, answer: Answer) -> dict[str, object]:
        """Return the record of an answer."""
        request, name, conversation = question
        _, until = request.decoding()
        return {
            "method": key_of(self.method),
            "question": name,
            "answer": min((answer.text.partition(end)[0] for end in until), key=len, default=answer.text).strip(),
            "spent": answer.spent,
            "vision_tokens": answer.vision_tokens,
            "flops": answer.flops,
            "confidence": answer.confidence,
            "tokens": list(answer.said),
            "retention": answer.retention,
            "media": conversation.media_name(),
            "setting": None if answer.method is None else answer.method.to_dict(),
        }
