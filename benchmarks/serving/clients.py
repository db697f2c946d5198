"""Concurrent clients of a server. Each uses OpenAI's client and asks one question after the other."""

import asyncio
import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openai import AsyncOpenAI
from PIL import Image

__all__ = ["Load", "Question", "Reply", "load"]

END = "</s>"


@dataclass(frozen=True)
class Question:
    """A question that a client sends.

    Attributes:
        text: The question.
        picture: The picture as a data URL. None for text only.
        answer: The right answer. None if it is not checked.
    """

    text: str
    picture: str | None
    answer: str | None

    @property
    def messages(self) -> list[dict[str, object]]:
        """The messages of the request, in the API's format."""
        parts: list[dict[str, object]] = [{"type": "text", "text": self.text}]
        if self.picture is not None:
            parts.insert(0, {"type": "image_url", "image_url": {"url": self.picture}})
        return [{"role": "user", "content": parts}]


@dataclass(frozen=True)
class Reply:
    """The times of one answer in seconds, and if it is right.

    Attributes:
        first: Time from the request to the first token.
        each: Mean time of each later token, or 0 if there is only one token.
        right: True if the answer is right. None if it is not checked.
    """

    first: float
    each: float
    right: bool | None


@dataclass(frozen=True)
class Load:
    """The results of concurrent clients.

    Attributes:
        seconds: Time from the first request to the last answer.
        replies: The replies to all clients.
    """

    seconds: float
    replies: tuple[Reply, ...]

    def figures(self) -> dict[str, float]:
        """Requests per second, and percentiles of the times to the first and to each later token, in seconds."""
        first = [reply.first for reply in self.replies]
        each = [reply.each for reply in self.replies]
        return {
            "requests_per_s": len(self.replies) / self.seconds,
            "ttft_p50": float(np.quantile(first, 0.5)),
            "ttft_p99": float(np.quantile(first, 0.99)),
            "tpot_p50": float(np.quantile(each, 0.5)),
            "tpot_p99": float(np.quantile(each, 0.99)),
        }


def as_url(image: Image.Image) -> str:
    """A picture as a data URL with a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def load(address: str, questions: Sequence[Question], clients: int, new_tokens: int) -> Load:
    """Ask all questions with concurrent clients.

    Every answer has exactly `new_tokens` tokens, so that no setting gains by short answers. Text after the
    end-of-sequence token is ignored when the answer is checked.

    Args:
        address: The address of the server's API.
        questions: The questions, in the order in which clients take them.
        clients: Number of concurrent clients.
        new_tokens: Length of each answer, in tokens.
    """
    return asyncio.run(_load(address, questions, clients, new_tokens))


async def _load(address: str, questions: Sequence[Question], clients: int, new_tokens: int) -> Load:
    waiting = iter(questions)
    replies: list[Reply] = []

    async with AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as api:

        async def client() -> None:
            for question in waiting:
                replies.append(await _ask(api, question, new_tokens))

        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        seconds = time.perf_counter() - start
    return Load(seconds, tuple(replies))


async def _ask(api: AsyncOpenAI, question: Question, new_tokens: int) -> Reply:
    start = time.perf_counter()
    stream = await api.chat.completions.create(
        model="model",
        messages=question.messages,  # type: ignore[arg-type]
        max_tokens=new_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "skip_special_tokens": False, "add_special_tokens": True},
    )
    text, first, last, count = "", None, start, 0
    async for chunk in stream:
        if chunk.usage is not None:
            count = chunk.usage.completion_tokens
        if chunk.choices and chunk.choices[0].delta.content:
            last = time.perf_counter()
            first = first or last
            text += chunk.choices[0].delta.content
    if first is None or count != new_tokens:
        raise RuntimeError(f"The server answered {count} tokens, not {new_tokens}.")
    right = None
    if question.answer is not None:
        right = text.split(END)[0].strip() == question.answer
    return Reply(first - start, (last - first) / max(1, count - 1), right)
