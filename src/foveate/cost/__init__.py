"""The cost of a prompt with and without dropping: FLOPs and KV-cache bytes, from a config without weights."""

from foveate.cost._cost import Cost as Cost, cost as cost, flops_words as flops_words
from foveate.cost._prompt import Known as Known, RunCounts as RunCounts
from foveate.plain.room import make_callable

make_callable(__name__, "foveate.cost._cost:cost")
