"""The version of foveate. A separate file, because importing the package imports everything."""

__version__ = "0.5.0"
