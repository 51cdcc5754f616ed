"""Help as tyro writes it, with the lines outside its frames wrapped at the terminal's width."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap


class HelpPage(io.TextIOWrapper):
    """What is written for standard output, kept, in its encoding and with colours where it has."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding=sys.stdout.encoding, newline="")
        self._coloured = sys.stdout.isatty()

    def isatty(self) -> bool:
        """Whether standard output is a terminal, for which tyro uses colours."""
        return self._coloured

    def text(self) -> str:
        """All that was written, as it was."""
        self.seek(0)
        return self.read()

    def wrapped(self) -> str:
        """All that was written, with lines that begin with a letter, as framed ones do not, cut."""
        width = shutil.get_terminal_size().columns
        return "".join(
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) + "\n"
            if line[:1].isalpha()
            else line + "\n"
            for line in self.text().splitlines()
        )
