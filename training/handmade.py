"""An examination of the embedded model by pictures drawn by hand.

    python training/handmade.py [FOLDER] [--out FILE]

`training/handmade` has the pictures and, in `questions.json`, what is asked about each. Their author had read the model
card and nothing of the generator of the training pictures, so the two share no habits.

FOLDER is a model's folder (default: the embedded model). Printed are a table by group and all wrong answers; an answer
counts only if it is right word for word.
"""

import argparse
import hashlib
import json
import platform
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
import transformers

import foveate as fv
from foveate.embedded import path
from measure import interval

__all__ = ["PICTURES", "QUESTIONS", "Question", "table"]

HERE = Path(__file__).resolve().parent / "handmade"


class Question(NamedTuple):
    """One question about one picture, and the only answer that is right."""

    picture: str
    group: str
    question: str
    answer: str


EXAM = json.loads((HERE / "questions.json").read_text(encoding="utf-8"))
PICTURES = {name: HERE / f"{name}.png" for name in EXAM}
QUESTIONS = [
    Question(name, asked["group"], question, answer)
    for name, asked in EXAM.items()
    for question, answer in asked["answers"].items()
]


def answers(folder: str) -> list[str]:
    """The model's answer to each question of QUESTIONS, in their order."""
    vlm = fv.load(folder)
    asked = ((PICTURES[question.picture], question.question) for question in QUESTIONS)
    return [answer.text.strip() for answer in vlm.ask_many(asked, batch_size=8, fit="pad")]


def row(marks: list[bool]) -> dict[str, float]:
    """n, right, accuracy and interval, with the keys of measure.py."""
    low, high = interval(sum(marks), len(marks))
    accuracy = sum(marks) / len(marks)
    return {
        "n": len(marks),
        "right": sum(marks),
        "accuracy": round(accuracy, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def table(marks: list[bool]) -> dict[str, dict[str, float]]:
    """One row for each group, in the order of the pictures, and one for all together."""
    groups: dict[str, list[bool]] = {}
    for question, mark in zip(QUESTIONS, marks, strict=True):
        groups.setdefault(question.group, []).append(mark)
    groups["all"] = marks
    return {group: row(members) for group, members in groups.items()}


def examine(folder: Path | None) -> dict:
    """Ask everything, print the table and the wrong answers, and return the record."""
    texts = answers(str(folder) if folder else "embedded")
    rows = table([text == question.answer for text, question in zip(texts, QUESTIONS, strict=True)])
    print(f"{'group':<24}{'n':>5}{'right':>7}{'share':>8}   95 % interval")
    for group, numbers in rows.items():
        print(
            f"{group:<24}{numbers['n']:>5}{numbers['right']:>7}{numbers['accuracy']:>8.3f}"
            f"   {numbers['low']:.2f} to {numbers['high']:.2f}"
        )
    wrong = []
    for text, question in zip(texts, QUESTIONS, strict=True):
        if text != question.answer:
            wrong.append({**question._asdict(), "given": text})
            print(f"{question.picture}: {question.question} {question.answer}, not {text!r}")
    weights = (folder or Path(path())) / "model.safetensors"
    return {
        "model": str(folder or "embedded"),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "pictures": len(PICTURES),
        "results": rows,
        "wrong": wrong,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="a model's folder (default: the embedded model)")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    arguments = parser.parse_args()
    record = examine(arguments.folder)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
