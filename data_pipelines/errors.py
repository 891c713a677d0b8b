"""Errors whose message is for the user: of their files, and of their configs."""


class UserError(Exception):
    """An error whose message is for the user: it says what is wrong and what to do about it."""


class DataError(UserError, ValueError):
    """A file, folder or array that cannot be used, why, and what to do about it.

    Attributes:
      path: the file or folder at fault; "" when an array has no file.
      problem: what is wrong, without any patient tag.
      cure: what the user can do.
    """

    def __init__(self, path: object, problem: str, cure: str):
        """Keeps the three parts; `str()` prints "PATH: problem. Cure: ..."."""
        self.path = str(path)
        self.problem = problem
        self.cure = cure
        super().__init__(self.path, problem, cure)  # all arguments: survives worker pickling

    def __str__(self) -> str:
        """The message as the user reads it."""
        return printable(f"{self.path or 'array'}: {self.problem}. Cure: {self.cure}.")


class TextError(DataError):
    """One text that cannot be used, where others of its kind can."""


class ConfigError(UserError, ValueError):
    """Values of a config that cannot work, alone or together, and what to do about it."""


def printable(text: object) -> str:
    """A path or name as text that every file, terminal and log can hold.

    Line ends, other control characters and bytes that are not UTF-8 become escapes.
    """
    name = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
