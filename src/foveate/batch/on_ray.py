"""Models on Ray: Ray Data streams chunks of rows through actors, one a device, on one machine or many."""

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np

from foveate._upstream import first_line
from foveate.batch.answering import Answerer, Asking
from foveate.batch.here import Chunk
from foveate.batch.rows import Result
from foveate.batch.sources import arrow
from foveate.errors import InputError, UnsupportedError

__all__ = ["OnRay", "require_ray"]

CHUNK, RESULTS = "chunk", "results"


class OnRay:
    """Actors of Ray. One that runs already is used (`RAY_ADDRESS`); else one is started on this machine.

    Every machine must see the input and its files under the same paths. What an actor has in hand when a run is stopped
    is asked again by the next run.

    Args:
        asking: How each is asked.
        count: How many actors; None is one a GPU, or one where there is none.
    """

    def __init__(self, asking: Asking, count: int | None = None) -> None:
        self._asking = asking
        self._count = count

    def __enter__(self) -> Self:
        ray = require_ray()
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._context = ray.data.DataContext.get_current()
        self._before = self._context.enable_progress_bars, self._context.target_max_block_size
        self._context.enable_progress_bars = False
        self._context.target_max_block_size = 1  # a block a chunk: else all small chunks would go to one actor
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        self._actors = self._count or max(1, gpus)
        self._needs = {"num_gpus": 1} if gpus else {"num_cpus": min(1.0, there.get("CPU", 1) / self._actors)}
        return self

    def __exit__(self, *_: object) -> None:
        self._context.enable_progress_bars, self._context.target_max_block_size = self._before
        if self._started:
            require_ray().shutdown()

    def about(self) -> dict[str, Any]:
        ray = require_ray()
        with_needs = ray.remote(**self._needs)(_about)
        try:
            about: dict[str, Any] = ray.get(with_needs.remote(self._asking))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray fails: {first_line(error)} Run again: what was answered is kept.") from error
        return about

    def answered(self, chunks: Iterable[Chunk], stop: Callable[[], bool]) -> Iterator[list[Result]]:
        ray = require_ray()
        # Reading needs no core of its own: where the actors have all of them, it would wait for ever.
        rows = ray.data.read_datasource(_datasource(chunks), override_num_blocks=1, num_cpus=0)
        answered = rows.map_batches(
            _Actor,
            fn_constructor_args=(self._asking,),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=self._actors),
            **self._needs,
        )
        try:
            for row in answered.iter_rows():
                yield pickle.loads(row[RESULTS])
                if stop():
                    return
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise InputError(f"Ray fails: {first_line(cause)} Run again: what was answered is kept.") from error


class _Actor:
    """A model that answers chunks."""

    def __init__(self, asking: Asking) -> None:
        self._answerer = Answerer(asking)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = [pickle.dumps(self._answerer.answer(pickle.loads(chunk))) for chunk in batch[CHUNK]]
        return {RESULTS: np.array(results, dtype=object)}


def _about(asking: Asking) -> dict[str, Any]:
    return Answerer(asking).about()


def _datasource(chunks: Iterable[Chunk]) -> Any:
    """The chunks as Ray Data reads them: one task that streams, a block a chunk."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Chunks(Datasource):  # type: ignore[misc]  # its base is known only with Ray
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda: _blocks(chunks), metadata)]

    return Chunks()


def _blocks(chunks: Iterable[Chunk]) -> Iterator[Any]:
    pyarrow = arrow()
    for chunk in chunks:
        yield pyarrow.table({CHUNK: [pickle.dumps(chunk)]})


def require_ray() -> Any:
    """The package Ray, with Ray Data.

    Raises:
        UnsupportedError: If it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UnsupportedError("Ray is not installed: pip install 'foveate[ray]'.") from error
    return ray
