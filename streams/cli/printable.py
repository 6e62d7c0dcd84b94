"""Words of shops and users on an operator's terminal: shown, never obeyed."""


def printable(text: str) -> str:
    """The text on one line, without what a terminal would take for a command (colours, line breaks, bells).

    >>> printable("red mug\\x1b[2J\\n")
    'red mug\ufffd[2J\ufffd'
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
