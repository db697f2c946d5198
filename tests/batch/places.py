"""Where rows are answered in tests that need no model."""

from foveate.batch.rows import Answered, Row


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

    def answered(self, chunks, stop):
        for chunk in chunks:
            self.then(chunk)
            yield [answered(row) if isinstance(row, Row) else row for row in chunk]
            if stop():
                return


def answered(row):
    return Answered(row.number, row.id, row.question, 0.5, 576, 288.0, 3, 0.0, 0.0)
