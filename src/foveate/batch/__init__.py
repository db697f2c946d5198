"""Answer many rows of pictures and questions into a folder. A job can be stopped and continued at any time.

rows        one model that answers chunks of rows
columns     reads the batches that engines hand over
numbering   numbers the rows of an input, which may grow
job         joins an input, a crew of models and a folder; finds what crashed the last run
"""

from foveate.batch.rows import Predictor

__all__ = ["Predictor"]
