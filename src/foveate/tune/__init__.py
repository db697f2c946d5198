"""Fitting a setting to a budget on samples of one's own: a search for schedules, thresholds for MustDrop."""

from foveate._room import make_callable
from foveate.tune.record import Record
from foveate.tune.tuned import Tuned
from foveate.tune.tuning import tune

__all__ = ["Record", "Tuned", "tune"]

make_callable(__name__, "foveate.tune.tuning:tune")
