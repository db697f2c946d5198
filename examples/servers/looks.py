"""Cache the looks of ongoing conversations, so that pictures which a client sends again each turn run only once."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import foveate as fv
from foveate.ask.conversation import MEDIA, Conversation, Part


@dataclass
class Kept:
    """A cached look: its prefix, the requested method and budget, and the time of its last use."""

    prefix: fv.Prefix
    asked: tuple[Any, ...]
    used: float


class Looks:
    """A cache of looks with a maximum size and a time to live.

    Args:
        vlm: The model.
        most: How many looks are kept; the least recently used one is removed first.
        seconds: How long a look is kept after its last question.
    """

    def __init__(self, vlm: fv.VLM, most: int, seconds: float) -> None:
        self.vlm, self.most, self.seconds = vlm, most, seconds
        self.kept: list[Kept] = []

    def at(
        self, conversation: Conversation, messages: list[dict[str, Any]], method: Any, budget: dict[str, Any]
    ) -> fv.Prefix | None:
        """Return a look at the pictures of a conversation, whose JSON is `messages`; None if it cannot be cached."""
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
        except fv.UnsupportedError:  # the method reads the question, or the model cannot add pictures to a look
            return None
        self.kept = [*self.kept, Kept(prefix, asked, now)][-self.most :]
        return prefix


def names(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Return the parts of a conversation in order: texts, and names for pictures and films."""
    return [(kind, Conversation.about([value], "").media_name() if kind in MEDIA else value) for kind, value in parts]


def goes_on(prefix: fv.Prefix, conversation: Conversation) -> bool:
    """Return whether a conversation begins with the look's parts and continues in turns, as a look can."""
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
    """Return the pictures after a look, each with the texts before it."""
    steps, texts = [], []
    for kind, value in conversation.parts[len(prefix.conversation.parts) :]:
        if kind in MEDIA:
            steps.append((texts, (kind, value)))
            texts = []
        else:
            texts.append(value)
    return steps


def texts_behind(conversation: Conversation) -> list[str]:
    """Return the texts after the last picture."""
    behind = itertools.takewhile(lambda part: part[0] not in MEDIA, reversed(conversation.parts))
    return [text for _, text in behind][::-1]


def up_to_last_picture(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation up to and including its last picture."""
    for turn in reversed(range(len(messages))):
        content = messages[turn]["content"]
        shown = [place for place, part in enumerate(content) if not isinstance(content, str) and part["type"] != "text"]
        if shown:
            return [*messages[:turn], {**messages[turn], "content": content[: shown[-1] + 1]}]
    return []
