"""Tests of the training code import its modules by their short names, as its scripts do."""

import sys
from pathlib import Path

TRAINING = str(Path(__file__).parents[2] / "training")
if TRAINING not in sys.path:
    sys.path.append(TRAINING)
