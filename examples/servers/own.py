r"""Serve one model with OpenAI's chat completions API. Each request can choose a method and a budget.

    pip install fastapi uvicorn
    python examples/servers/own.py [MODEL] [--port 8000] [--method v2drop --retention 0.3]; see --help for limits

Clients send pictures and films as data: URLs; the server opens no paths and no other URLs. The model answers one
request at a time; others wait. Endpoints that ask the model are plain functions, which run in threads, so the server
stays responsive.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from threading import Semaphore
from typing import Annotated, Any

import uvicorn
from anyio import from_thread
from chat import Chat, Refusal, completion, error_of, events, opened
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from looks import Looks, prompt_after
from pydantic import ValidationError
from starlette.exceptions import HTTPException

import foveate as fv
from foveate.ask.conversation import Conversation
from foveate.ask.prompt import prepare
from foveate.ask.running import reply_to


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="replay prompts of a known layout as CUDA graphs; experimental"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--method", help="method for requests that name none (default: no dropping)")
    parser.add_argument("--retention", type=float, help="retention for --method")
    parser.add_argument("--length", type=int, default=512, help="tokens of an answer if the request sets no limit")
    parser.add_argument("--size", type=int, default=32 * 2**20, help="maximum bytes of a request (else 413)")
    parser.add_argument("--pixels", type=int, default=50_000_000, help="maximum pixels, frames included (else 413)")
    parser.add_argument("--tokens", type=int, default=16_384, help="maximum tokens of prompt and answer (else 413)")
    parser.add_argument(
        "--waiting",
        type=int,
        default=16,
        choices=range(33),
        metavar="N",
        help="requests that may wait, up to 32 (else 429)",
    )
    parser.add_argument("--seconds", type=float, default=120, help="time limit for waiting and answering (else 504)")
    parser.add_argument("--looks", type=int, default=0, help="conversations whose pictures stay cached (default: 0)")
    parser.add_argument("--look-seconds", type=float, default=600, help="how long after their last question")
    return parser.parse_args(words)


@contextmanager
def held(turns: Semaphore, seconds: float, error: Exception) -> Iterator[None]:
    """Hold the semaphore; raise the error if it is not free in time."""
    if not turns.acquire(timeout=seconds):
        raise error
    try:
        yield
    finally:
        turns.release()


def server(vlm: fv.VLM, options: argparse.Namespace) -> FastAPI:
    """Return the application that serves this model."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    place, turn, started = Semaphore(options.waiting + 1), Semaphore(1), int(time.time())
    looks = Looks(vlm, options.looks, options.look_seconds)

    async def read(request: Request) -> Chat:
        """Parse the body of a request; keep no more than the maximum size in memory."""
        body, size = bytearray(), 0
        async for piece in request.stream():
            size += len(piece)
            body += piece if size <= options.size else b""
        if size > options.size:
            raise Refusal(f"The request has {size:,} bytes; at most {options.size:,} are read.", status=413)
        return Chat.model_validate_json(bytes(body))

    @app.post("/v1/chat/completions")
    def complete(request: Request, asked: Annotated[Chat, Depends(read)]) -> Any:
        """Answer a question, whole or as a stream."""
        if asked.model != vlm.name:
            raise Refusal(f"No model {asked.model!r:.80}; this server has {vlm.name}.", "model", 404, "model_not_found")
        asked.check()
        messages = opened(asked.messages, options.pixels)
        pieces = answered(asked, messages, lambda: from_thread.run(request.is_disconnected))
        pieces = chain([next(pieces)], pieces)  # errors before the first piece still get an HTTP status
        if asked.stream:
            return StreamingResponse(events(asked, pieces), media_type="text/event-stream")
        *_, (answer, reason) = pieces
        return completion(asked, answer, reason)

    def answered(asked: Chat, messages: list[dict[str, Any]], gone: Callable[[], bool]) -> Iterator[Any]:
        """Yield the pieces of an answer, then the answer and why it ended."""
        until, late = time.monotonic() + options.seconds, Refusal(f"Over the {options.seconds:g} s limit.", status=504)
        full = Refusal(f"{options.waiting} requests are waiting; try again later.", None, 429, "rate_limit_exceeded", 5)
        settings = asked.generation(options.length)
        with held(place, 0, full), held(turn, options.seconds, late):
            conversation = Conversation.of(messages)
            prompt = prepare(vlm, conversation, as_pictures=True, few=True)
            if prompt.tokens + settings.max_new_tokens > options.tokens:
                what = f"A prompt of {prompt.tokens:,} tokens and an answer of {settings.max_new_tokens:,}"
                raise Refusal(f"{what} exceed {options.tokens:,}.", "messages", 413, "context_length_exceeded")
            method, budget = asked.method, {"tokens": asked.tokens, "retention": asked.retention}
            if "method" not in asked.model_fields_set:  # method: null means the untouched model
                method, budget = options.method, budget if any(budget.values()) else {"retention": options.retention}
            drops, look = vlm.method_for(method, prompt.vision_tokens, **budget), None
            prefix = looks.at(conversation, messages, method, budget) if options.looks else None
            if prefix is not None and (after_look := prompt_after(prefix, conversation, prompt)) is not None:
                prompt, drops, look = after_look, prefix.method, prefix.look
            with reply_to(vlm, prompt, drops, settings, stream=True, look=look) as stream:
                for piece in stream:
                    if gone():
                        raise Refusal("The client has disconnected.", status=499)
                    if time.monotonic() > until:
                        raise late
                    yield piece
            cut = vlm.processor.decode(list(stream.answer.tokens), skip_special_tokens=True).strip()
            whole = cut != stream.answer.text or len(stream.answer.said) < settings.max_new_tokens
        yield stream.answer, "stop" if whole else "length"

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """List the model."""
        return {"object": "list", "data": [{"id": vlm.name, "object": "model", "created": started, "owned_by": "me"}]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Report that the server is up, even while requests wait."""
        return {"status": "ok", "model": vlm.name}

    def refuse(request: Request, error: Exception) -> JSONResponse:
        """Return an error in OpenAI's format."""
        if isinstance(error, HTTPException):  # from the framework: unknown route or HTTP method
            error = Refusal(error.detail, status=error.status_code)
        status, body, headers = error_of(error)
        return JSONResponse(body, status, headers)

    for kind in (fv.FoveateError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    return app


if __name__ == "__main__":
    options = options_of()
    try:
        vlm = fv.load(options.model, cuda_graphs=options.cuda_graphs)
        vlm.method_for(options.method, 0, retention=options.retention)
    except fv.FoveateError as error:
        sys.exit(f"own.py: {error}")
    if os.path.isdir(vlm.name):  # do not reveal the path
        vlm.name = os.path.basename(os.path.realpath(vlm.name))
    budget = f" at retention {options.retention:g}" if options.retention else ""
    what = f"{options.method or 'no method'}{budget} if a request names none"
    limits = f"{options.pixels:,} pixels, {options.tokens:,} tokens, {options.seconds:g} s, {options.waiting} waiting"
    print(f"{vlm.name} at http://{options.host}:{options.port}/v1; {what}; at most {limits}.", flush=True)
    uvicorn.run(server(vlm, options), host=options.host, port=options.port)
