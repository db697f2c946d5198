"""foveate's own version, apart from the package, which imports everything."""

__all__ = ["__version__"]

__version__ = "0.2.0"
