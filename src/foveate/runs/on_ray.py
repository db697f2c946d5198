"""`Actors`: a crew of Ray actors, on one machine or several."""

import os
from concurrent.futures import Future
from typing import Any, Self

from foveate.errors import InputError, UnsupportedError
from foveate.plain.upstream import first_line, install_line
from foveate.runs.crew import Employee, Task, Together, check_count


class Actors(Together):
    """A crew of Ray actors, one per GPU. Every machine must see the input and its files under the same paths.

    Args:
        task: Makes each actor's worker.
        count: Number of actors; None is one per GPU, or one without a GPU.
        address: Ray's address: "local" starts Ray on this machine, "auto" joins the cluster of this machine.

    Raises:
        UnsupportedError: If Ray is not installed.
    """

    def __init__(self, task: Task, count: int | None = None, address: str = "auto") -> None:
        try:
            import ray
        except ImportError as error:
            raise UnsupportedError(f"Ray is not installed: {install_line('ray')}.") from error
        self._ray: Any = ray
        self.died = (self._ray.exceptions.RayActorError,)
        super().__init__(task, count or 0)
        self._address = address

    def __enter__(self) -> Self:
        ray = self._ray
        self._began = not ray.is_initialized()
        if self._began:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
            try:
                quiet = {}
                if self._address == "local":
                    quiet = {"include_dashboard": False}
                ray.init(self._address, log_to_driver=False, logging_level="CRITICAL", **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"No Ray at {self._address!r}: {first_line(error)}") from error
        there = ray.cluster_resources()
        gpus, cores = int(there.get("GPU", 0)), there.get("CPU", 1)
        self._count = self._count or max(1, gpus)
        check_count(self._count, max(gpus, int(cores)))
        if gpus:
            needs = {"num_gpus": 1}
        else:
            needs = {"num_cpus": min(1.0, cores / self._count)}
        self._actor = ray.remote(**needs)(Employee)
        self._actors: dict[int, Any] = {}
        for place in range(self._count):
            self._hire(place)
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._began:
            self._ray.shutdown()

    def _hire(self, place: int) -> None:
        self._actors[place] = self._actor.remote(self._task, 0, self._count)

    def _ask(self, place: int, item: object) -> Future[object]:
        asked: Future[object] = self._actors[place].ask.remote(item).future()
        return asked

    def _result(self, place: int, future: Future[object]) -> object:
        try:
            return future.result()
        except self.died:
            raise
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise InputError(f"Ray failed: {first_line(error)} Run again: the answers so far are kept.") from error
