"""Models on Ray: Ray Data streams chunks of rows through actors, one a device, on one machine or many."""

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np

from foveate._upstream import first_line, install_line
from foveate.batch.answering import Answerer, Asking
from foveate.batch.here import Chunk
from foveate.batch.rows import Result
from foveate.batch.sources import arrow
from foveate.batch.workers import check_count
from foveate.errors import InputError, UnsupportedError

__all__ = ["OnRay", "require_ray"]

CHUNK, RESULTS = "chunk", "results"
SETTINGS = {
    "enable_progress_bars": False,
    "target_max_block_size": 1,  # a block a chunk: else all small chunks would go to one actor
    "max_errored_blocks": -1,  # an actor that dies does not end the run
}


class OnRay:
    """Actors of Ray. One that runs already is used (`RAY_ADDRESS`); else one is started on this machine.

    Every machine must see the input and its files under the same paths. What an actor has in hand when a run is stopped
    is asked again by the next run. An actor that dies takes its chunk along, and is started again.

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
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        self._context = ray.data.DataContext.get_current()
        self._before = {name: getattr(self._context, name) for name in SETTINGS}
        for name, value in SETTINGS.items():
            setattr(self._context, name, value)
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        self._actors = self._count or max(1, gpus)
        check_count(self._actors, max(gpus, int(there.get("CPU", 1))))
        self._needs = {"num_gpus": 1} if gpus else {"num_cpus": min(1.0, there.get("CPU", 1) / self._actors)}
        return self

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            setattr(self._context, name, value)
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_task_retries has no other place yet, and goes with Ray 2.64
            answered = rows.map_batches(
                _Actor,
                fn_constructor_args=(self._asking,),
                batch_size=1,
                batch_format="numpy",
                # One chunk at a time: those that wait at an actor would die with it.
                compute=ray.data.ActorPoolStrategy(size=self._actors, max_tasks_in_flight_per_actor=1),
                max_task_retries=0,  # by default, a chunk that no actor survives is tried for ever
                **self._needs,
            )
        try:
            for row in answered.iter_rows():
                results = pickle.loads(row[RESULTS])
                if isinstance(results, Exception):
                    raise results
                yield results
                if stop():
                    return
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise InputError(f"Ray fails: {first_line(cause)} Run again: what was answered is kept.") from error


class _Actor:
    """A model that answers chunks. What is raised is a result: to Ray, it would be one more actor that has died."""

    def __init__(self, asking: Asking) -> None:
        self._error: Exception | None = None
        try:
            self._answerer = Answerer(asking)
        except Exception as error:
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (chunk,) = batch[CHUNK]
        return {RESULTS: np.array([pickle.dumps(self._results(pickle.loads(chunk)))], dtype=object)}

    def _results(self, chunk: Chunk | Exception) -> list[Result] | Exception:
        if isinstance(chunk, Exception):
            return chunk
        if self._error is not None:
            return self._error
        try:
            return self._answerer.answer(chunk)
        except Exception as error:
            return error


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
    """A block a chunk. Where the input cannot be read, the last one is the reason."""
    pyarrow = arrow()
    try:
        for chunk in chunks:
            yield pyarrow.table({CHUNK: [pickle.dumps(chunk)]})
    except Exception as error:
        yield pyarrow.table({CHUNK: [pickle.dumps(error)]})


def require_ray() -> Any:
    """The package Ray, with Ray Data.

    Raises:
        UnsupportedError: If it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UnsupportedError(f"Ray is not installed: {install_line('ray')}.") from error
    return ray
