"""Errors in the user's files and configs, with messages for the user."""


class UserError(Exception):
    """An error with a message for the user, about its cause and its cure."""


class DataError(UserError, ValueError):
    """An error about a file, folder or array that cannot be used, with its cause and its cure.

    Attributes:
      path: the file or folder; "" for an array without a file.
      problem: the cause, without any patient tag.
      cure: what the user can do.
    """

    def __init__(self, path: object, problem: str, cure: str):
        """Stores the three parts; `str()` gives "PATH: problem. Cure: ..."."""
        self.path = str(path)
        self.problem = problem
        self.cure = cure
        super().__init__(self.path, problem, cure)  # all arguments: survives worker pickling

    def __str__(self) -> str:
        """Returns the message for the user."""
        return printable(f"{self.path or 'array'}: {self.problem}. Cure: {self.cure}.")


class TextError(DataError):
    """An error about a single text that cannot be used; other texts of the dataset can be."""


class ConfigError(UserError, ValueError):
    """An error about one or several values of a config that cannot work, with its cure."""


def printable(text: object) -> str:
    """Returns a path or name as text that is safe in every file, terminal and log.

    Line ends, other control characters and bytes that are not UTF-8 become escape sequences.
    """
    name = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
