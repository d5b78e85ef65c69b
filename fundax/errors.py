"""The one error that means: the user's input or configuration is at fault, not the program."""


class UserError(ValueError):
    """A mistake of the caller's that a message can mend.

    The message names the file, field or value at fault and what was expected. The command line prints it on one
    line, without a traceback, and exits with status 2.
    """
