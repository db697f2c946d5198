"""Tests for any method and any model: tiny random models, the contract of methods, and the check of a model."""

from foveate.testing.checked import Checked, Row
from foveate.testing.checking import check
from foveate.testing.contract import MethodContract, check_method
from foveate.testing.models import TinyModel, tiny_model
from foveate.testing.random_views import made_tensors, made_view

__all__ = [
    "Checked",
    "MethodContract",
    "Row",
    "TinyModel",
    "check",
    "check_method",
    "made_tensors",
    "made_view",
    "tiny_model",
]
