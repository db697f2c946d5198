"""Cache the looks of ongoing conversations, so that pictures which a client sends again each turn run only once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import foveate as fv
from foveate.ask.conversation import MEDIA, Conversation
from foveate.ask.prompt import Prompt
from foveate.registry import family_for


@dataclass
class Kept:
    """A cached look.

    Attributes:
        prefix: The look.
        asked: The requested method and budget.
        shown: The turns up to its last picture, with names for pictures and films.
        used: The time of its last use.
    """

    prefix: fv.Prefix
    asked: tuple[Any, ...]
    shown: Any
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
        """Return a look at the pictures of a conversation, one by one, or None if they cannot be seen so.

        Where the model can add no picture to a look, all are looked at together.

        Args:
            conversation: The conversation.
            messages: The same as messages.
            method, budget: What drops, as for `VLM.look`.
        """
        now, asked, count = time.monotonic(), (method, *budget.items()), len(conversation.media)
        self.kept = [kept for kept in self.kept if now - kept.used < self.seconds]
        showing = {role for role, parts in conversation.turns for kind, _ in parts if kind in MEDIA}
        if showing != {"user"} or conversation.more:
            return None
        names = [Conversation.about([medium], "").media_name() for medium in conversation.media]
        named = conversation.with_media(names)
        first = 1 if family_for(self.vlm.model).grows else count
        beginnings = [named.split(number)[0].turns for number in range(first, count + 1)]
        alike = [kept for kept in self.kept if kept.asked == asked and kept.shown in beginnings]
        earlier = max(alike, key=lambda kept: beginnings.index(kept.shown), default=None)
        try:
            if earlier is None:
                prefix, seen = self.vlm.look(messages=up_to(messages, first), method=method, **budget), first
            else:
                prefix, seen = earlier.prefix, first + beginnings.index(earlier.shown)
            for number in range(seen, count):
                behind = conversation.split(number)[1].split(1)[0]
                prefix = prefix.see(behind.media[0], after=behind.without_media([0]))
        except fv.FoveateError:  # such as a method that reads the question, or a budget that one picture cannot meet
            return None
        self.kept = [kept for kept in self.kept if kept is not earlier]
        self.kept = [*self.kept, Kept(prefix, asked, beginnings[-1], now)][-self.most :]
        return prefix


def prompt_after(prefix: fv.Prefix, conversation: Conversation, prompt: Prompt) -> Prompt | None:
    """Return the prompt of a conversation after a look at its pictures. None if it has other ids than `prompt`."""
    try:
        asked = prefix.prompt(*texts_behind(conversation))
    except fv.FoveateError:  # such as a template that writes another text before the pictures
        return None
    return asked if torch.equal(asked.inputs["input_ids"], prompt.inputs["input_ids"]) else None


def texts_behind(conversation: Conversation) -> list[Conversation]:
    """Return what follows the last picture, as `Prefix.prompt` reads it."""
    return [conversation.split(len(conversation.media))[1]]


def up_to(messages: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return messages up to and including the picture or film of this number, from 1."""
    for turn, message in enumerate(messages):
        parts = [] if isinstance(message["content"], str) else message["content"]
        shown = [place for place, part in enumerate(parts) if part["type"] != "text"]
        if len(shown) >= count:
            return [*messages[:turn], {**message, "content": parts[: shown[count - 1] + 1]}]
        count -= len(shown)
    return []
