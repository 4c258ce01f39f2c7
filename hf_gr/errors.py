"""The one exception whose message is written for the user, and the one line that is told of all others."""


class HfGrError(Exception):
    """Bad input or a broken artifact. The message is one line that says what is wrong, where, and the remedy.

    The command line prints it without a traceback and exits with status 1; library users see an ordinary exception.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type when it has none, to be put into an [`HfGrError`]'s."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
