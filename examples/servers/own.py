r"""A server of your own: one model, a method and a budget for each request, answers streamed or whole.

    pip install fastapi uvicorn
    python examples/servers/own.py [--port 8000] [MODEL]

    curl -s localhost:8000/ask -H 'Content-Type: application/json' \
      -d "{\"image\": \"$(base64 -w0 cat.jpg)\", \"question\": \"What is it?\", \"method\": \"v2drop\"}"

Requests wait for one another: the VLM takes one at a time, whichever thread it comes from. Endpoints are plain
functions, so that the server runs each in a thread, and goes on listening.
"""

import argparse
from base64 import b64decode
from binascii import Error
from io import BytesIO

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel

import foveate as fv

MOST = 20_000_000  # letters of a picture; see also Image.MAX_IMAGE_PIXELS


class Question(BaseModel):
    """What a client asks; `image` is a picture's file in base64."""

    image: str
    question: str
    method: str | None = None
    retention: float | None = None
    stream: bool = False


def server(vlm: fv.VLM) -> FastAPI:
    """The application that asks this model."""
    app = FastAPI()

    @app.post("/ask")
    def ask(request: Question):
        """Answer a question."""
        try:
            picture = opened(request.image)
            answer = vlm.ask(
                picture,
                request.question,
                method=request.method,
                retention=request.retention,
                max_new_tokens=64,
                stream=request.stream,
            )
        except fv.FoveateError as error:  # one line that says what was wrong, and what to do
            raise HTTPException(400, str(error)) from error
        if request.stream:
            return StreamingResponse(answer, media_type="text/plain")
        return {"answer": answer.text, "retention": answer.retention, "notes": answer.notes}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"model": vlm.name}

    return app


def opened(text: str) -> Image.Image:
    """The picture in a request."""
    if len(text) > MOST:
        raise fv.InputError(f"The picture has {len(text):,} letters; at most {MOST:,} are taken.")
    try:
        picture = Image.open(BytesIO(b64decode(text, validate=True)))
        picture.load()
    except (Error, OSError, Image.DecompressionBombError) as error:
        raise fv.InputError(f"The picture cannot be read: {error}") from error
    return picture


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(server(fv.load(options.model)), port=options.port)
