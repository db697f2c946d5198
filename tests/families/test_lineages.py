"""A file holds a family or a lineage of them, and all are found unasked."""

import inspect
import pkgutil
from importlib import import_module

import pytest

import foveate as fv
import foveate.families
from foveate.families.base import Family
from foveate.families.derived import Derived

MODULES = [module.name for module in pkgutil.iter_modules(foveate.families.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_every_family_of_a_file_that_names_its_model_is_found(name):
    """But the derived one, which serves any model, and what only those two have that derive from it."""
    module = import_module(f"foveate.families.{name}")
    here = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    served = [kind for kind in here if issubclass(kind, Family) and "model_type" in vars(kind)]
    assert all(fv.families()[kind.model_type] is kind for kind in served if not issubclass(kind, Derived))
