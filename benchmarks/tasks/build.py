"""Draw benchmarks: held-out pictures and questions as Parquet files, in the format of lmms-eval's real tasks.

    python benchmarks/tasks/build.py tasks/ --questions 200
    python -m lmms_eval --model foveate --include_path tasks/ --tasks foveate_pope,foveate_mme --batch_size 8

The result depends only on the number of questions and the seed. The embedded model was not trained on these pictures.
Nothing is downloaded.
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value, disable_progress_bars
from PIL import Image as Pictures

from foveate.embedded.questions import all_questions
from foveate.embedded.scenes import rng_for, scene
from foveate.eval.held_out import APART, SPLIT, questions

HERE = Path(__file__).parent
TEXT = Value("string")
PERSONS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all tasks into a folder."""
    asked = argparse.ArgumentParser(description="Draw benchmarks in the form of POPE, TextVQA, MME and GQA.")
    asked.add_argument("folder", type=Path, help="output folder; pass it to lmms-eval as --include_path")
    asked.add_argument("--questions", type=int, default=200, help="questions of each task (default: 200)")
    asked.add_argument("--seed", type=int, default=0, help="seed of the pictures (default: 0)")
    options = asked.parse_args(arguments)
    disable_progress_bars()
    for name, (rows, features) in {
        "pope": (pope(options.questions, options.seed), POPE),
        "textvqa": (textvqa(options.questions, options.seed), TEXTVQA),
        "mme": (mme(options.questions, options.seed), MME),
        "gqa": (gqa(options.questions, options.seed), GQA),
    }.items():
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / name / f"foveate_{name}.yaml", folder)
        Dataset.from_list(rows, features=Features(features)).to_parquet(folder / f"{name}.parquet")
        print(f"{folder / f'{name}.parquet'}: {len(rows)} questions")


POPE: dict[str, Any] = {"id": TEXT, "question_id": TEXT, "question": TEXT, "answer": TEXT, "image_source": TEXT}
POPE |= {"image": Image(), "category": TEXT}


def pope(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of POPE's format: is an object in the picture? The shares of yes and no are those of the pictures."""
    return [
        {
            "id": str(at),
            "question_id": str(at),
            "question": one.text,
            "answer": one.labels[0],
            "image_source": f"scene_{one.picture}",
            "image": picture(one.picture),
            "category": "random",
        }
        for at, one in enumerate(questions(("existence",), count, (seed,)))
    ]


TEXTVQA: dict[str, Any] = {"image_id": TEXT, "question_id": Value("int32"), "question": TEXT, "image": Image()}
TEXTVQA |= {"image_width": Value("int32"), "image_height": Value("int32"), "answers": List(TEXT)}
TEXTVQA |= {"ocr_tokens": List(TEXT), "set_name": TEXT}


def textvqa(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of TextVQA's format: what does the text say? All ten annotators agree, and the OCR tokens are right."""
    return [
        {
            "image_id": f"scene_{one.picture}",
            "question_id": at,
            "question": one.text,
            "image": picture(one.picture),
            "image_width": 336,
            "image_height": 336,
            "answers": [one.labels[0]] * PERSONS,
            "ocr_tokens": [one.labels[0]],
            "set_name": "val",
        }
        for at, one in enumerate(questions(("read text",), count, (seed,)))
    ]


MME: dict[str, Any] = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT}


def mme(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of MME's format: two questions about each picture, one answered yes, one no. Odd counts are rounded up."""
    rows: list[dict[str, Any]] = []
    at = seed * APART
    while len(rows) < count:
        asked = all_questions(scene(SPLIT, at), rng_for(SPLIT, at, purpose=1)).get("existence", [])
        pair = [next((one for one in asked if one.answer == answer), None) for answer in ("yes", "no")]
        if all(pair):
            rows += [
                {
                    "question_id": f"existence/{at:08d}.png",
                    "image": picture(at),
                    "question": one.question,
                    "answer": one.answer.capitalize(),
                    "category": "existence",
                }
                for one in pair
                if one is not None
            ]
        at += 1
    return rows


GQA: dict[str, Any] = {"id": TEXT, "imageId": TEXT, "question": TEXT, "answer": TEXT, "image": Image()}


def gqa(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of GQA's format: colours, shapes, positions and relations, a quarter each. Rounded up to a multiple of 4."""
    return [
        {
            "id": str(at),
            "imageId": f"scene_{one.picture}",
            "question": one.text,
            "answer": one.labels[0],
            "image": picture(one.picture),
        }
        for at, one in enumerate(questions(("colour", "shape", "quadrant", "relation"), count, (seed,)))
    ]


def picture(number: int) -> dict[str, Any]:
    """A picture as the bytes of a PNG file, in the format of `datasets`."""
    file = io.BytesIO()
    Pictures.fromarray(scene(SPLIT, number).image).save(file, format="png")
    return {"bytes": file.getvalue(), "path": None}


if __name__ == "__main__":
    main()
