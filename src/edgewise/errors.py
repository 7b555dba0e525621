"""What can go wrong, as one tree: catch the level you care about.

EdgewiseError                  the command ends with exit code 1
├── UserError                  the user's mistake: one line, exit code 2
│   ├── RecipeError            an unknown key, a wrong type or unit, a value out of range
│   ├── UnknownName            no such model, data set, method, runtime (with "did you mean")
│   ├── DataError              a missing or corrupt archive, a broken image, a label out of range
│   ├── ModelError             weights that do not fit, a forward that raises, a wrong output shape
│   │   └── UnsupportedOp      an operator the channel graph has no rule for
│   ├── BudgetError            a budget that no allowed widths can meet
│   │   └── AlignmentError     one that only widths between the aligned ones could meet: exit code 3
│   ├── RunFolderError         a run folder that exists, is missing, or was changed by hand
│   │   └── StaleFile          a file of an unfinished run that must be deleted by hand
│   └── MissingExtra           an optional dependency that is not installed
├── TrainingDiverged           the loss became NaN or infinite
├── CheckFailed                an equality the product promises does not hold
└── MeasurementFailed          a runtime could not load or run an artifact
"""

from collections.abc import Iterable
from difflib import get_close_matches


class EdgewiseError(Exception):
    """Anything edgewise raises on purpose."""

    exit_code = 1


class UserError(EdgewiseError):
    """The user's mistake; its message is one line that says what, where, the value and what to do."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe that cannot be read: an unknown key, a wrong type or unit, a value out of range."""


class UnknownName(UserError):  # noqa: N818 - reads as the fact it states
    """A name that is in no list; the message offers the nearest one."""


class DataError(UserError):
    """Data that cannot be used: missing, corrupt, mislabelled."""


class ModelError(UserError):
    """A network that cannot be used: weights that do not fit, a forward that raises, a wrong output."""


class UnsupportedOp(ModelError):  # noqa: N818
    """An operator without a rule in the channel graph; guessing would prune wrongly."""


class BudgetError(UserError):
    """A budget that no allowed widths can meet; the message holds the least possible."""


class AlignmentError(BudgetError):
    """A budget that could be met, but not with widths that are multiples of what was asked."""

    exit_code = 3


class RunFolderError(UserError):
    """A run folder that exists already, is missing, or was changed by hand."""


class StaleFile(RunFolderError):  # noqa: N818
    """A file in an unfinished run that must be deleted by hand; the message names it where it lies."""


class MissingExtra(UserError):  # noqa: N818
    """An optional dependency that is not installed; the message holds the install line."""


class TrainingDiverged(EdgewiseError):  # noqa: N818
    """The loss became NaN or infinite; the message names the step and the epoch."""


class CheckFailed(EdgewiseError):  # noqa: N818
    """An equality the product promises does not hold; the message holds the error and its limit."""


class MeasurementFailed(EdgewiseError):  # noqa: N818
    """A runtime could not load or run an artifact."""


def nearest(name: str, known: Iterable[str], path: str = "") -> str:
    """Say which known name was probably meant; `path` is what leads to it.

    >>> nearest("resnet21", ["resnet20", "vgg16_bn"])
    'did you mean "resnet20"?'
    >>> nearest("epoch", ["epochs", "lr"], "step.0.")
    'did you mean "step.0.epochs"?'
    >>> nearest("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(known)
    matches = get_close_matches(name, names, n=1, cutoff=0.6)
    return f'did you mean "{path}{matches[0]}"?' if matches else "known: " + ", ".join(names)


def one_line(error: BaseException) -> str:
    """Say an exception's type and message on one line.

    >>> one_line(ValueError("two\\n  lines"))
    'ValueError: two lines'
    """
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
