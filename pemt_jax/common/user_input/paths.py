"""What can be a path at all."""

from pemt_jax.common.errors import UsageError


def check_text(text: str) -> None:
    """Raise UsageError for what cannot be a path: nothing, a NUL, bytes that are no UTF-8."""
    if not text.strip():
        raise UsageError(f"Found the path {text!r}, expected that of a file or folder.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The path {text!r} is no UTF-8 text, expected a name that is.") from error
    if text.partition("/")[0] == "~":
        raise UsageError(
            f"The path {text!r} starts with ~, which only a shell replaces, expected $HOME or the "
            "whole path."
        )
    if "\0" in text:
        raise UsageError(f"The path {text!r} has a NUL character in it, expected none.")
