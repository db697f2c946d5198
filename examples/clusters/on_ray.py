"""Ask one question about every row of a Parquet file with Ray Data.

    python on_ray.py rows.parquet answers/ "What is this?" --workers 2

The file has the columns `id` and `image` (paths, or bytes as data sets have them). Answers are Parquet too. After a
kill, the same command answers the rows that were not written.
"""

import argparse
from pathlib import Path

import ray
from ray.data.checkpoint import CheckpointConfig

from foveate.batch import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "answers", "prompt"):
        parser.add_argument(name)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--piece", type=int, default=1024, help="rows that are written together (default: 1024)")
    asked = parser.parse_args()
    rows, answers = (path if "://" in path else str(Path(path).absolute()) for path in (asked.rows, asked.answers))
    ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=f"{answers.rstrip('/')}.checkpoints")
    replies = (
        ray.data.read_parquet(rows)
        .repartition(target_num_rows_per_block=asked.piece)
        .map_batches(
            Predictor,
            fn_constructor_args=[asked.model],
            fn_constructor_kwargs={"prompt": asked.prompt, "method": "divprune", "retention": 1 / 3},
            batch_size=min(64, asked.piece),
            concurrency=asked.workers,
            # A resumed run's filter of checkpoints holds a CPU. If workers held the others, Ray could read no rows.
            num_cpus=0,
            num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
        )
    )
    replies.drop_columns(["image"]).write_parquet(answers)


main()
