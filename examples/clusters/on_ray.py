"""Ask one question about every row of a Parquet file with Ray Data.

    python on_ray.py rows.parquet answers/ "What is this?" --workers 2

The file has the columns `id` and `image` (paths, or bytes as data sets have them). Answers are Parquet too.
"""

import argparse

import ray
from ray.data.checkpoint import CheckpointConfig

from foveate.batch import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "answers", "prompt"):
        parser.add_argument(name)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--cpus", type=int, help="CPUs that Ray counts with (default: those of the machine)")
    asked = parser.parse_args()
    # A resumed run needs a CPU for its filter of checkpoints, one for each worker, and one to read and write.
    ray.init(num_cpus=asked.cpus, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    # What was written when the run was killed is not asked again; what was under way is.
    context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=f"{asked.answers}.checkpoints")
    settings = {"prompt": asked.prompt, "method": "divprune", "retention": 1 / 3}
    rows = ray.data.read_parquet(asked.rows).map_batches(
        Predictor,
        fn_constructor_args=[asked.model],
        fn_constructor_kwargs=settings,
        batch_size=64,
        concurrency=asked.workers,
        num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
    )
    rows.drop_columns(["image"]).write_parquet(asked.answers)


main()
