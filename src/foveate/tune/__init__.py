"""Fitting a setting to a budget on samples of one's own. Imports the engine; nothing of the command line."""

from foveate._room import make_callable
from foveate.tune.record import Record
from foveate.tune.thresholds import tune

__all__ = ["Record", "tune"]

make_callable(__name__, "foveate.tune.thresholds:tune")
