"""Every error Slatecast raises on purpose, as a tree. A message says what to do next.

    SlatecastError                  the command line prints it in one line
    ├── Misuse                      the caller can mend it: wrong file, column, option      exit 2
    │   └── BadEvent                bytes that are no event or item; carries a class for the rejects topic
    ├── Unavailable                 a broker, Redis, registry or disk that does not answer   exit 1
    └── ModelRejected               a release that must not serve: corrupt, missing, not finite

Anything else that escapes is a bug and crashes with its traceback.
"""

import msgspec

# What msgspec raises at bytes that are not of a type: the second where a text is no UTF-8, as after a flipped bit.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
REASON_CLASSES = ("decode", "schema", "range", "oversize", "duplicate_conflict", "poison_crash")  # see BadEvent


def how_to_install(extra: str) -> str:
    """What to type for an optional part. By the folder: an index may give our name to others' code.

    >>> how_to_install("demo")
    "pip install '.[demo]' in the project's folder"
    """
    return f"pip install '.[{extra}]' in the project's folder"


class SlatecastError(Exception):
    """Base of the tree: an expected failure with a remedy in its message."""

    exit_code = 1


class Misuse(SlatecastError):
    """What was asked for cannot be done as asked; the message says how to ask."""

    exit_code = 2


class BadEvent(Misuse):
    """Bytes that are not an event (or item) we accept.

    `reason_class` goes to the rejects topic beside the bytes:
    decode               no JSON, or one that can be read in two ways
    schema               another shape than ours: a field that is missing, of another type, or no id
    range                a number, a length or a time that cannot be
    oversize             too many bytes to look at
    duplicate_conflict   the id of another event
    poison_crash         whatever it is, its processing has ended the process, again and again
    """

    def __init__(self, reason_class: str, message: str) -> None:
        super().__init__(message)
        self.reason_class = reason_class


class Unavailable(SlatecastError):
    """Something outside this process does not answer; trying again later may help."""


class ModelRejected(SlatecastError):
    """A release folder that must not serve."""
