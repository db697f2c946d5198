"""foveate's own version, apart from the package, which imports everything."""

__version__ = "0.3.0"
