"""Tune a method's settings to a budget on your own samples, or calibrate a second look to an agreement."""

from foveate.tuning.tuned import Tuned as Tuned
from foveate.tuning.tuning import tune as tune
