"""Fitting settings to a budget on samples of one's own, and a second look to an agreement."""

from foveate.tuning.tuned import Tuned as Tuned
from foveate.tuning.tuning import tune as tune
