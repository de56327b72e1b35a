"""What libraries say through Python's own `logging`, in the relay's log: one line each, shortened and redacted like any other.

Only the first line of a message is taken, and of asyncio's only what stands before a parenthesis: the rest shows the arguments of
callbacks, and with them pieces of bodies.
"""

import logging
from types import TracebackType
from typing import Any, Final

_METHODS: Final = ((logging.ERROR, "error"), (logging.WARNING, "warning"))


class LibraryLog(logging.Handler):
    """Puts warnings and errors of every library into the relay's log, from when it is opened until it is closed."""

    def __init__(self, log: Any) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def open(self) -> None:
        """Take what no library's own handler keeps."""
        logging.getLogger().addHandler(self)

    def close(self) -> None:
        """Leave off."""
        logging.getLogger().removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. Raises nothing: a record whose arguments do not fit its text is told as it stands."""
        try:
            message = record.getMessage()
        except Exception:  # what a library got wrong must not end what it was doing
            message = str(record.msg)
        method = next((name for level, name in _METHODS if record.levelno >= level), "info")
        message = message.partition("\n")[0]
        if record.name == "asyncio":
            message = message.partition("(")[0]
        fields: dict[str, Any] = {"logger": record.name, "message": message}
        error = _error_of(record)
        if error is not None:
            fields["exc_info"] = error
        getattr(self._log, method)("library", **fields)


def _error_of(record: logging.LogRecord) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    match record.exc_info:
        case (type() as kind, BaseException() as error, trace):
            return kind, error, trace
        case _:
            return None
