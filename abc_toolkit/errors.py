"""What a user got wrong."""


class UserError(ValueError):
    """Ends a command with exit status 2 and its message: one line that names the thing and the remedy."""
