"""Answer a question about a picture with llama.cpp, with all vision tokens and with the ones that a method keeps.

    pip install xllamacpp==2026.10.11549 gguf
    python examples/llama_cpp/answer.py [PICTURE] [--method divprune] [--tokens 192]

transformers' tower makes the rows, foveate picks, llama.cpp runs the decoder.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import torch
from llama import Decoder, Tower
from PIL import Image

import foveate as fv


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", default=fv.embedded.picture(), type=Path)
    parser.add_argument("--question", default=fv.embedded.QUESTION)
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--tower", choices=["transformers", "llama.cpp"], default="transformers")
    parser.add_argument("--files", type=Path, help="folder for the GGUF files (default: a temporary one)")
    return parser.parse_args()


def answer(
    decoder: Decoder, before: list[int], rows: np.ndarray, after: list[int], end: int
) -> tuple[list[int], float]:
    """Return the tokens of a greedy answer, and the seconds to its first token. Rows are numbered one by one."""
    start = time.perf_counter()
    decoder.clear()
    decoder.read(before)
    decoder.see(rows)
    logits = decoder.read(after)
    seconds, tokens = time.perf_counter() - start, []
    while len(tokens) < 16 and logits.argmax() != end:
        tokens.append(int(logits.argmax()))
        logits = decoder.read(tokens[-1:])
    return tokens, seconds


def rows_of_transformers(vlm: fv.VLM, inputs: dict[str, Any]) -> np.ndarray:
    """Return the rows that the projector makes of a picture, (tokens, width) float32."""
    with torch.no_grad():
        pieces = vlm.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    return torch.cat(list(pieces)).numpy()


def rows_of_llama(file: Path, decoder: Decoder, picture: Image.Image) -> np.ndarray:
    """Return the same rows by llama.cpp's CLIP tower, but for the first.

    It leaves the first patch out and gives the CLS row behind the last one. Turned by one row, each row is in the cell
    of its patch again, and the CLS row in the first cell.
    """
    tower = Tower(file, decoder)
    rows = np.roll(tower.rows(np.asarray(picture)), 1, axis=0)
    tower.close()
    return rows


def main() -> None:
    """Answer with all tokens, then with the ones that are kept."""
    asked = options()
    vlm = fv.load(device="cpu", dtype="float32")
    picture = Image.open(asked.picture).convert("RGB").resize((336, 336))
    with tempfile.TemporaryDirectory() as temporary:
        files = asked.files or Path(temporary)
        if not (files / gguf_files.DECODER).exists():
            gguf_files.write(files)
        decoder = Decoder(files / gguf_files.DECODER)
        inputs = vlm.prepare(picture, asked.question).inputs
        if asked.tower == "llama.cpp":
            rows = rows_of_llama(files / gguf_files.TOWER, decoder, picture)
        else:
            rows = rows_of_transformers(vlm, inputs)
        ids = inputs["input_ids"][0].tolist()
        start = ids.index(vlm.model.config.image_token_id)
        stop = start + len(rows)
        words = vlm.model.get_input_embeddings().weight.detach().numpy()[ids[stop:]]

        kept = fv.drop_rows(rows, asked.method, tokens=asked.tokens, grid=(24, 24), text=words, family="llava")
        for what, some in (("all", rows), (asked.method, kept.rows)):
            tokens, seconds = answer(decoder, ids[:start], some, ids[stop:], vlm.processor.tokenizer.eos_token_id)
            text = vlm.processor.decode(tokens, skip_special_tokens=True).strip()
            print(f"{what}: {len(some)} vision tokens, first token after {1e3 * seconds:.0f} ms: {text}")
        decoder.close()


if __name__ == "__main__":
    main()
