"""The one exception whose message is written for the user."""


class HfGrError(Exception):
    """Bad input or a broken artefact. The message is one line that says what is wrong, where, and the remedy.

    The command line prints it without a traceback and exits with status 1; library users see an ordinary exception.
    """
