"""What any method must hold, for a package of your own: tiny random models, and the contract that runs on them."""

from foveate.testing.contract import MethodContract, check_method
from foveate.testing.models import TinyModel, tiny_model
from foveate.testing.views import made_tensors, made_view

__all__ = ["MethodContract", "TinyModel", "check_method", "made_tensors", "made_view", "tiny_model"]
