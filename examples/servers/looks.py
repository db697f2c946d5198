"""Looks of conversations that go on: pictures that a client sends again, turn after turn, run once."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import foveate as fv
from foveate.ask.conversation import MEDIA, Conversation, Part


@dataclass
class Kept:
    """A look, the method that was asked for, and when it was used last."""

    prefix: fv.Prefix
    asked: tuple[Any, ...]
    used: float


class Looks:
    """At most so many looks, each for so many seconds behind its last question.

    Args:
        vlm: Who looks.
        most: How many; the one that was used longest ago goes first.
        seconds: How long one is kept.
    """

    def __init__(self, vlm: fv.VLM, most: int, seconds: float) -> None:
        self.vlm, self.most, self.seconds = vlm, most, seconds
        self.kept: list[Kept] = []

    def at(
        self, conversation: Conversation, messages: list[dict[str, Any]], method: Any, budget: dict[str, Any]
    ) -> fv.Prefix | None:
        """A look at the pictures of a conversation, which `messages` say too; None: it has to be asked afresh."""
        now, asked = time.monotonic(), (method, *budget.items())
        self.kept = [kept for kept in self.kept if now - kept.used < self.seconds]
        if not conversation.media or conversation.more:
            return None
        try:
            alike = (kept for kept in self.kept if kept.asked == asked)
            earlier = next((kept for kept in alike if goes_on(kept.prefix, conversation)), None)
            if earlier is None:
                prefix = self.vlm.look(messages=up_to_last_picture(messages), method=method, **budget)
            else:
                prefix = earlier.prefix
                self.kept.remove(earlier)
            for texts, part in pictures_behind(prefix, conversation):
                prefix = prefix.see(part[1], after=texts)
        except fv.UnsupportedError:  # a method that reads the question, or a model whose looks do not grow
            return None
        self.kept = [*self.kept, Kept(prefix, asked, now)][-self.most :]
        return prefix


def names(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """What is said and shown, in order: texts, and names for pictures and films."""
    return [(kind, Conversation.about([value], "").media_name() if kind in MEDIA else value) for kind, value in parts]


def goes_on(prefix: fv.Prefix, conversation: Conversation) -> bool:
    """Whether a conversation begins with what was looked at, and goes on as a look can: in turns."""
    earlier = prefix.conversation.parts
    if names(conversation.parts[: len(earlier)]) != names(earlier):
        return False
    grown = prefix.conversation
    for texts, part in pictures_behind(prefix, conversation):
        grown = grown.with_text(*texts).with_media_behind([part])
    grown = grown.with_text(*texts_behind(conversation))
    return [(role, len(parts)) for role, parts in grown.turns] == [
        (role, len(parts)) for role, parts in conversation.turns
    ]


def pictures_behind(prefix: fv.Prefix, conversation: Conversation) -> list[tuple[list[str], Part]]:
    """The pictures behind a look, each with the texts in front of it."""
    steps, texts = [], []
    for kind, value in conversation.parts[len(prefix.conversation.parts) :]:
        if kind in MEDIA:
            steps.append((texts, (kind, value)))
            texts = []
        else:
            texts.append(value)
    return steps


def texts_behind(conversation: Conversation) -> list[str]:
    """The texts behind the last picture."""
    behind = itertools.takewhile(lambda part: part[0] not in MEDIA, reversed(conversation.parts))
    return [text for _, text in behind][::-1]


def up_to_last_picture(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation up to and with its last picture."""
    for turn in reversed(range(len(messages))):
        content = messages[turn]["content"]
        shown = [place for place, part in enumerate(content) if not isinstance(content, str) and part["type"] != "text"]
        if shown:
            return [*messages[:turn], {**messages[turn], "content": content[: shown[-1] + 1]}]
    return []
