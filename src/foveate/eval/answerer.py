"""Answering a benchmark's requests in batches; what is answered is kept, and what is known is not asked again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

from foveate._loading import Loaded
from foveate.errors import SettingError, UnsupportedError
from foveate.eval import provenance
from foveate.eval.answering import First, answer, collate, vision_counts
from foveate.eval.prompts import Conversation, encoder
from foveate.eval.run import FULL
from foveate.eval.setting import Choice
from foveate.eval.store import Store

__all__ = ["Answerer", "Conduct", "Request"]

T = TypeVar("T")

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
        encoder(self.protocol)
        for name in ("batch_size", "most_frames"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is 1 or more; got {getattr(self, name)}.")

    def conditions(self, loaded: Loaded) -> dict[str, Any]:
        """All that an answer depends on but for question and method; see `Store`."""
        return provenance.conditions(loaded) | {"protocol": self.protocol, "most_frames": self.most_frames}


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


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """A request whose media are read; `inputs` are what the model gets."""

    at: int
    name: str
    media: str
    longest: int
    until: tuple[str, ...]
    conversation: Conversation
    inputs: Any = None
    method: Any = None


@dataclass(eq=False)
class Answerer:
    """A model under one setting, and what it answered.

    Attributes:
        loaded: The model.
        choice: What drops.
        conduct: How questions are put.
        store: Where answers are kept and looked up; None keeps them in memory only.
        advance: Called with the number of answers that were added.
        records: Every answer so far by task and document.
    """

    loaded: Loaded
    choice: Choice = field(default_factory=Choice)
    conduct: Conduct = field(default_factory=Conduct)
    store: Store | None = None
    advance: Callable[[int], object] = lambda done: None
    records: dict[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in the order of the requests.

        Raises:
            SettingError: If a sample cannot meet the budget.
            UnsupportedError: If a task asks for anything but greedy decoding.
        """
        texts = [""] * len(requests)
        for window in _parts(range(len(requests)), WINDOW * self.conduct.batch_size):
            left = []
            for at in window:
                request = requests[at]
                ready = self._read(at, request)
                known = self.store.get(self.choice.key, ready.name) if self.store is not None else None
                if known is None:
                    left.append(ready)
                else:
                    texts[at] = self._note(request, known)
                    self.advance(1)
            for batch in self._batches(left):
                rows = self._answered(batch)
                if self.store is not None:
                    self.store.add(rows)
                for ready, row in zip(batch, rows, strict=True):
                    texts[ready.at] = self._note(requests[ready.at], row)
                self.advance(len(rows))
        return texts

    def _note(self, request: Request, row: Mapping[str, Any]) -> str:
        self.records[request.task, request.document] = row
        text: str = row["answer"]
        return text

    def _read(self, at: int, request: Request) -> _Ready:
        conversation = Conversation.of(request.messages(), self.conduct.most_frames)
        if self.conduct.protocol == "llava" and (ocr := request.ocr()) is not None:
            conversation = conversation.with_ocr(*ocr)
        longest, until = _decoding(request)
        name = f"{request.task}/{request.split}/{request.document}/"
        name += conversation.name({"max_new_tokens": longest, "until": until})
        return _Ready(at, name, conversation.media(), longest, until, conversation)

    def _batches(self, left: Sequence[_Ready]) -> Iterator[Sequence[_Ready]]:
        """Samples that can share a batch: one method, tensors that fit, lengths as close as can be."""
        model, encode = self.loaded.model, encoder(self.conduct.protocol)
        found = []
        for one in left:
            inputs = encode(self.loaded, one.conversation).to(model.device, dtype=model.dtype)
            count = vision_counts(model.config, inputs)[0]
            method = None if self.choice.solve is None or not count else self.choice.solve(count)
            whole = replace(one, inputs=inputs, method=method)
            key = f"{one.longest} {method} {_shapes(inputs)}"
            found.append((key, int(inputs["input_ids"].shape[1]), whole))
        found.sort(key=lambda entry: entry[:2])
        for _, group in groupby(found, key=lambda entry: entry[0]):
            yield from _parts([whole for *_, whole in group], self.conduct.batch_size)

    def _answered(self, batch: Sequence[_Ready]) -> list[dict[str, Any]]:
        """A record of each answer to one batch."""
        model, method = self.loaded.model, batch[0].method
        inputs = collate([one.inputs for one in batch], model.generation_config.pad_token_id or 0)
        given = answer(model, inputs, method, max_new_tokens=batch[0].longest)
        rows = []
        for one, got in zip(batch, given, strict=True):
            text = self.loaded.processor.decode(list(got.tokens), skip_special_tokens=True).strip()
            row: dict[str, Any] = {
                "method": self.choice.key,
                "question": one.name,
                "answer": min((text.split(stop)[0] for stop in one.until), key=len, default=text).strip(),
                "tokens": list(got.tokens),
                "spent": got.spent,
                "vision_tokens": got.vision_tokens,
                "retention": got.spent / got.vision_tokens if got.vision_tokens else 1.0,
                "flops": got.flops,
                "media": one.media,
                "setting": None if method is None else method.to_dict(),
            }
            if self.choice.key == FULL:
                first = First.of(got.logs)
                row["first"] = {"ids": first.ids, "logs": first.logs}
            elif (whole := self._full(one.name)) is not None:
                row["kl"] = round(whole.divergence(First.of(got.logs, whole.ids)), 6)
            rows.append(row)
        return rows

    def _full(self, name: str) -> First | None:
        """The full model's first tokens for this question, where the store has them."""
        row = None if self.store is None else self.store.get(FULL, name)
        return None if row is None else First(tuple(row["first"]["ids"]), tuple(row["first"]["logs"]))


def _parts(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The things in order, at most `size` at a time."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


def _decoding(request: Request) -> tuple[int, tuple[str, ...]]:
    """The longest answer and the texts that end one."""
    asked = request.generation
    if asked.get("do_sample") or (asked.get("temperature") or 0) > 0 or (asked.get("num_beams") or 1) > 1:
        raise UnsupportedError(
            f"{request.task} asks for sampling or beams; answers here are greedy. Got {json.dumps(dict(asked))}. "
            "Tell lmms-eval: --gen_kwargs temperature=0,do_sample=False,num_beams=1."
        )
    until = asked.get("until") or ()
    return int(asked.get("max_new_tokens") or LONGEST), tuple([until] if isinstance(until, str) else until)


def _shapes(inputs: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """What must be equal for tensors to be joined: all but the first dimension, and but the text's length."""
    text = inputs["input_ids"].shape
    return sorted((name, () if value.shape == text else tuple(value.shape[1:])) for name, value in inputs.items())
