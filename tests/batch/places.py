"""Where rows are answered in tests that need no model, and a model that some pictures crash."""

import os
from dataclasses import fields

from foveate.batch import rows
from foveate.batch.rows import RowAsking, bad_row, beside
from foveate.runs.samples import Bad


class Echo:
    """Answers every question with itself, at once.

    Args:
        then: Called with each chunk before it is answered.
    """

    def __init__(self, then=lambda chunk: None, model="echo"):
        self.then, self.model = then, model

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def about(self):
        return {"weights": self.model}

    def work(self, items, stopped):
        for chunk in items:
            self.then(chunk)
            yield chunk, [bad_row(one, one.reason) if isinstance(one, Bad) else answered(one) for one in chunk]
            if stopped():
                return


def answered(sample):
    return beside(
        sample.record,
        {
            "row": sample.number, "id": sample.id, "answer": sample.question, "retention": 0.5, "vision_tokens": 576,
            "tokens": 288.0, "new_tokens": 3, "prepare_seconds": 0.0, "answer_seconds": 0.0, "notes": [],
        },
    )  # fmt: skip


def make_files_deadly():
    """From now on, `nofile.png` crashes this process, as a decoder does that breaks."""
    read = rows.read_once

    def deadly(paths, *arguments):
        if any(path.endswith("nofile.png") for path in paths):
            os.abort()
        return read(paths, *arguments)

    rows.read_once = deadly


class Deadly(RowAsking):
    """Loads its model where files are deadly."""

    def load(self):
        make_files_deadly()
        return super().load()


def deadly(asking):
    """The same, where files are deadly."""
    return Deadly(**{field.name: getattr(asking, field.name) for field in fields(asking)})
