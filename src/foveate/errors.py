"""The exceptions that foveate raises on purpose.

    FoveateError
    ├── SettingError        a method's settings contradict each other or are out of range
    │   ├── BudgetError     the method cannot meet the budget; the message names the floor
    │   ├── KeywordError    a call has no keyword of this name
    │   └── MethodError     a method of your own failed, or returned what cannot be used
    ├── UnknownNameError    there is no method, preset or family of that name
    ├── UnsupportedError    foveate cannot serve this model, cache or call correctly
    ├── SessionError        contexts are nested or have ended, or a pruned cache is used outside its context
    ├── InputError          a given file cannot be read, or a file to write already exists
    └── ShapeError          tensors do not fit together

Each message says what was wrong, what was got and what to do.
"""


class FoveateError(Exception):
    """Base class of all errors that foveate raises on purpose."""


class SettingError(FoveateError, ValueError):
    """A method's settings contradict each other or are out of range."""


class KeywordError(SettingError, TypeError):
    """A call has no keyword of this name. The message lists those that it has."""


class BudgetError(SettingError):
    """The method cannot meet the requested budget.

    Attributes:
        floor: The lowest mean retention that the method can reach, as a share. None if not known.
    """

    def __init__(self, message: str, floor: float | None = None) -> None:
        super().__init__(message)
        self.floor = floor


class MethodError(SettingError):
    """The code of a method that is not foveate's own failed, or returned what cannot be used. The message names it."""


class UnknownNameError(FoveateError, LookupError):
    """There is no method, preset or family of this name."""


class UnsupportedError(FoveateError, RuntimeError):
    """foveate cannot serve this model, cache or call correctly."""


class SessionError(FoveateError, RuntimeError):
    """Dropping contexts are nested or have ended, or a pruned cache is used outside its context."""


class InputError(FoveateError, ValueError):
    """A given file cannot be read, or a file to write already exists."""


class ShapeError(FoveateError, ValueError):
    """Tensors given to a function do not fit together."""
