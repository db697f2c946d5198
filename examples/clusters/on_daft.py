"""Ask one question about every row of a Parquet file with Daft.

    python on_daft.py rows.parquet answers/ "What is this?"

The file has the columns `id` and `image`, a path or bytes. Answers are Parquet too.
"""

import sys

import daft
from daft import DataType, col

from foveate.batch import Predictor

ANSWER = DataType.struct({"answer": DataType.string(), "error": DataType.string(), "retention": DataType.float64()})


@daft.cls(max_concurrency=1)
class Asking:
    """One model in each worker, loaded at its first batch."""

    def __init__(self, prompt: str) -> None:
        self.predictor = Predictor("embedded", prompt=prompt, method="divprune", retention=1 / 3)

    @daft.method.batch(return_dtype=ANSWER, batch_size=64)
    def ask(self, images: daft.Series) -> list[dict]:
        told = self.predictor({"image": images.to_pylist()})
        rows = zip(told["answer"], told["error"], told["retention"], strict=True)
        return [{"answer": answer, "error": error, "retention": retention} for answer, error, retention in rows]


rows, answers, prompt = sys.argv[1:]
asked = daft.read_parquet(rows).select(col("id"), Asking(prompt).ask(col("image")).alias("told"))
asked.select(col("id"), *(col("told")[name].alias(name) for name in ANSWER.to_arrow_dtype().names)).write_parquet(
    answers
)
