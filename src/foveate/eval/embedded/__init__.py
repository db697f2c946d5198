"""The embedded half: held-out pictures and their questions, offline.

from foveate.eval.embedded import evaluate
"""

from foveate.eval.embedded.evaluation import evaluate

__all__ = ["evaluate"]
