"""Fitting settings to a budget on samples of one's own: schedules of all methods, MustDrop's thresholds."""

from foveate.plain.room import make_callable
from foveate.tune.tuned import Tuned as Tuned
from foveate.tune.tuning import tune as tune, tune_many as tune_many
from foveate.tune.tunings import Tunings as Tunings

make_callable(__name__, "foveate.tune.tuning:tune")
