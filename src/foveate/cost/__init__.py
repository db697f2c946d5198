"""What a prompt costs with and without dropping: FLOPs and KV-cache bytes from a config, without weights."""

from foveate.cost._cost import Cost, cost
from foveate.cost._prompt import Known, RunCounts
from foveate.plain.room import make_callable

__all__ = ["Cost", "Known", "RunCounts", "cost"]

make_callable(__name__, "foveate.cost._cost:cost")
