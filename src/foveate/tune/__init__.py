"""Fitting a setting to a budget on samples of one's own: schedules of all methods, MustDrop's thresholds."""

from foveate.plain.room import make_callable
from foveate.tune.tuned import Tuned
from foveate.tune.tuning import tune

__all__ = ["Tuned", "tune"]

make_callable(__name__, "foveate.tune.tuning:tune")
