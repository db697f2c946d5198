"""Fitting settings to a budget on samples of one's own: schedules of all methods, MustDrop's thresholds."""

from foveate.plain.room import make_callable
from foveate.tune.tuned import Tuned
from foveate.tune.tuning import tune, tune_many
from foveate.tune.tunings import Tunings

__all__ = ["Tuned", "Tunings", "tune", "tune_many"]

make_callable(__name__, "foveate.tune.tuning:tune")
