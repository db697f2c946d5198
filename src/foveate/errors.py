"""Every exception foveate raises on purpose.

    FoveateError
    ├── SettingError        a method's settings contradict each other or leave their range
    │   └── BudgetError     no schedule reaches the budget; the message names the floor
    ├── UnknownNameError    no method, preset or family of that name
    ├── UnsupportedError    the model, cache or call is one foveate cannot serve correctly
    ├── SessionError        contexts nested or ended, a pruned cache used outside its context
    ├── InputError          a file handed in cannot be read, or one to be written is in the way
    └── ShapeError          tensors that do not fit together

Each message says what was wrong, what was got and what to do.
"""


class FoveateError(Exception):
    """Base class of every error foveate raises on purpose."""


class SettingError(FoveateError, ValueError):
    """A method's settings contradict each other or leave their range."""


class BudgetError(SettingError):
    """No schedule of this method reaches the budget asked for.

    Attributes:
        floor: The lowest mean retention this method reaches, as a share; None where that is not known.
    """

    def __init__(self, message: str, floor: float | None = None) -> None:
        super().__init__(message)
        self.floor = floor


class UnknownNameError(FoveateError, LookupError):
    """No method, preset or family has this name."""


class UnsupportedError(FoveateError, RuntimeError):
    """The model, cache or call is one foveate cannot serve correctly."""


class SessionError(FoveateError, RuntimeError):
    """Dropping contexts are nested or ended, or a pruned cache left its context."""


class InputError(FoveateError, ValueError):
    """A file handed in cannot be read, or one to be written is in the way."""


class ShapeError(FoveateError, ValueError):
    """Tensors handed to a function do not fit together."""
