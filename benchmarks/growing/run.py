"""Measure what a look still knows after it forgot frames. Writes benchmarks/growing/record.json and prints its table.

    python benchmarks/growing/run.py            # half an hour on one core; after a stop, it goes on where it was
    python benchmarks/growing/run.py --table    # print the table of the existing record

The embedded film model sees films of eight frames. In each, a text is visible for a while in the first, middle or last
third. Frames are seen one by one, and the question follows the last: with all frames kept, and with only the newest
four. For comparison, the question is asked afresh about as many frames, sampled evenly from the film. Every frame has
the same budget; a twelfth of each of eight frames is a sixth of the rows of four whole ones. A stream of a thousand
frames is measured too: rows, bytes and seconds per frame.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from PIL import Image

import foveate as fv
from foveate import embedded
from foveate.embedded.films import Film, film
from foveate.embedded.scenes import Lettering
from foveate.eval.held_out import APART, SPLIT
from foveate.plain.stats import Resampled
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
FRAMES, KEPT = 8, (8, 4)
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "vidcom2, a third": {"method": "vidcom2", "retention": 1 / 3},
    "vidcom2, a twelfth": {"method": "vidcom2", "retention": 1 / 12},
    "divprune, a twelfth": {"method": "divprune", "retention": 1 / 12},
}
SEEDS = (11, 12, 13)
THIRDS = ("first", "middle", "last")


def films_of(seed: int, count: int) -> list[tuple[int, Film, str]]:
    """Films whose text is visible in one third only, `count` for each third: (number, film, third)."""
    left = dict.fromkeys(THIRDS, count)
    chosen, number = [], seed * APART
    while any(left.values()):
        drawn, number = film(SPLIT, number, FRAMES), number + 1
        for shown in drawn.shown:
            if isinstance(shown.what, Lettering):
                third = THIRDS[shown.start * 3 // FRAMES]
                if third == THIRDS[(shown.stop - 1) * 3 // FRAMES] and left[third]:
                    left[third] -= 1
                    chosen.append((number - 1, drawn, third))
    return chosen


def text_of(drawn: Film) -> str:
    return next(shown.what.name for shown in drawn.shown if isinstance(shown.what, Lettering))


def streamed(vlm: fv.VLM, frames: Sequence[Image.Image], looking: dict[str, Any], kept: int) -> str:
    """The answer after a stream of frames of which the newest `kept` stay."""
    live = vlm.look(frames[0], **looking)
    for at, frame in enumerate(frames[1:], start=1):
        live = live.see(frame, at=at)
        if len(live.pictures) > kept:
            live = live.forget()
    return live.ask("What does the text say?").text


def sampled(vlm: fv.VLM, frames: Sequence[Image.Image], looking: dict[str, Any], kept: int) -> str:
    """The answer when asked afresh about `kept` frames, the middles of equal parts of the film."""
    places = [(2 * part + 1) * len(frames) // (2 * kept) for part in range(kept)]
    return vlm.ask([frames[place] for place in places], "What does the text say?", **looking).text


def answers(vlm: fv.VLM, count: int, done: Path) -> list[dict[str, Any]]:
    """A row for each film: for each method, way and number of frames, True if the answer was right.

    Each row is appended to the file `done`, from which a stopped run goes on.
    """
    rows = [json.loads(line) for line in done.read_text(encoding="utf-8").splitlines()] if done.exists() else []
    known = {(row["film"], row["third"]) for row in rows}
    for seed in SEEDS:
        for number, drawn, third in films_of(seed, count):
            if (number, third) in known:
                continue
            frames = [Image.fromarray(scene.image) for scene in drawn.frames]
            row: dict[str, Any] = {"film": number, "seed": seed, "third": third}
            for name, looking in METHODS.items():
                for kept in KEPT:
                    for way, ask in (("streamed", streamed), ("sampled", sampled)):
                        row[f"{name}, {way}, {kept}"] = ask(vlm, frames, looking, kept) == text_of(drawn)
            rows.append(row)
            with done.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print(f"seed {seed}: {len(rows)} films", flush=True)
    return rows


def stream(vlm: fv.VLM, count: int) -> dict[str, list[float]]:
    """Rows, bytes and seconds of a stream, one number per frame: frames of films in succession, three kept."""
    live, told = None, {"rows": [], "bytes": [], "seconds": []}
    for number in range(count):
        drawn = film(SPLIT, 99 * APART + number // FRAMES, FRAMES)
        frame = Image.fromarray(drawn.frames[number % FRAMES].image)
        start = process_time()
        if live is None:
            live = vlm.look(frame, **METHODS["vidcom2, a third"])
        else:
            live = live.see(frame, at=number, memory=160)
        told["seconds"].append(process_time() - start)
        told["rows"].append(live.rows)
        told["bytes"].append(live.nbytes)
    return told


# -- tables -------------------------------------------------------------------------------------------------------


def tables(record: dict[str, Any]) -> str:
    """Accuracy by frames kept and by third, with 95 % intervals over films, and the cost of the stream."""
    rows = record["answers"]
    resampled = Resampled([row["film"] for row in rows])
    lines = [
        "| dropped | frames kept | way | text in the first third | middle | last | all |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        for kept in KEPT:
            for way in ("streamed", "sampled"):
                if kept == FRAMES and way == "sampled":
                    continue
                cells = []
                for third in (*THIRDS, None):
                    right = [row[f"{name}, {way}, {kept}"] if third in (None, row["third"]) else np.nan for row in rows]
                    shares = resampled.means(np.array(right, dtype=float))
                    middle, low, high = shares[0], *np.nanquantile(shares[1:], (0.025, 0.975))
                    cells.append(f"{middle:.0%} [{low:.0%}, {high:.0%}]")
                lines.append(f"| {name} | {kept} | {way} | {' | '.join(cells)} |")
    streamed = record["stream"]
    for first in (10, 400, len(streamed["rows"]) - 100):
        part = {name: values[first : first + 100] for name, values in streamed.items()}
        seconds = float(np.median(part["seconds"]))
        lines.append(
            f"frames from {first}: {max(part['rows'])} rows, {max(part['bytes']):,} bytes, {seconds:.2f} s each"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=8, help="films of each third and seed")
    parser.add_argument("--frames", type=int, default=1000, help="frames of the stream")
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    parser.add_argument("--table", action="store_true", help="print the table of the existing record and run nothing")
    wanted = parser.parse_args()
    if wanted.table:
        print(tables(json.loads(wanted.out.read_text(encoding="utf-8"))))
        return
    torch.set_num_threads(1)
    vlm, done = fv.load(embedded.FILMS, device="cpu"), wanted.out.with_suffix(".part.jsonl")
    record = {
        "command": "python benchmarks/growing/run.py",
        "commit": commit(),
        "versions": versions(),
        "answers": answers(vlm, wanted.films, done),
        "stream": stream(vlm, wanted.frames),
    }
    wanted.out.write_text(json.dumps(record) + "\n", encoding="utf-8")
    done.unlink(missing_ok=True)
    print(tables(record))


if __name__ == "__main__":
    main()
