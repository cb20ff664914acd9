"""Where each key of a TOML text stands: a line for every dotted path, which ``tomllib`` does not keep.

The text must already have been accepted by ``tomllib``; this scanner only finds places, it checks nothing.
"""

import re
import tomllib

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\n#]*")
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"{3,5}', re.DOTALL),
    re.compile(r"'''.*?'{3,5}", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


def locate(text: str) -> dict[Path, int]:
    """The 1-based line of every key, table header and array element in ``text``."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


class _Scanner:
    """A cursor over the text; each method consumes one construct of the TOML 1.0 grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._line = 1
        self._counted = 0

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def document(self) -> None:
        table: Path = ()
        counts: dict[Path, int] = {}
        self.space(newlines=True)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header(counts)
            else:
                self.pair(table)
            self.space(newlines=True)

    def header(self, counts: dict[Path, int]) -> Path:
        """``[a.b]`` or ``[[a.b]]``; the path of an array of tables carries the element's index."""
        line, array = self.line(), self.text.startswith("[[", self.at)
        self.at += 2 if array else 1
        path: Path = ()
        keys = self.key()
        self.at += 2 if array else 1
        for number, key in enumerate(keys):
            path = (*path, key)
            last = number == len(keys) - 1
            if last and array:
                counts[path] = counts.get(path, -1) + 1
            if path in counts:
                self.lines.setdefault(path, line)
                path = (*path, counts[path])
            if last:
                self.lines[path] = line
            else:
                self.lines.setdefault(path, line)
        return path

    def pair(self, table: Path) -> None:
        """``key.path = value``."""
        line, path = self.line(), table
        for key in self.key():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.at += 1  # the equals sign
        self.space()
        self.value(path)

    def key(self) -> list[str]:
        """A dotted key; the cursor ends on what follows it."""
        keys: list[str] = []
        while True:
            self.space()
            word = _BARE.match(self.text, self.at)
            if word:
                keys.append(word.group())
                self.at = word.end()
            else:
                start = self.at
                self.string()
                keys.append(next(iter(tomllib.loads(f"{self.text[start : self.at]} = 0"))))
            self.space()
            if self.text[self.at : self.at + 1] != ".":
                return keys
            self.at += 1

    def value(self, path: Path) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        else:
            self.at = _end(_SCALAR.match(self.text, self.at))

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        self.space(newlines=True)
        while self.text[self.at] != "]":
            self.lines[(*path, index)] = self.line()
            self.value((*path, index))
            index += 1
            self.space(newlines=True)
            if self.text[self.at] == ",":
                self.at += 1
                self.space(newlines=True)
        self.at += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        self.space(newlines=True)
        while self.text[self.at] != "}":
            self.pair(path)
            self.space(newlines=True)
            if self.text[self.at] == ",":
                self.at += 1
                self.space(newlines=True)
        self.at += 1

    def string(self) -> None:
        for pattern in _STRINGS:
            if match := pattern.match(self.text, self.at):
                self.at = match.end()
                return
        raise ValueError(f"no string at position {self.at}")

    def space(self, *, newlines: bool = False) -> None:
        """Skip blanks; with ``newlines`` also line ends and comments."""
        blanks = " \t\n" if newlines else " \t"
        while self.at < len(self.text):
            if self.text[self.at] in blanks:
                self.at += 1
            elif newlines and self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return


def _end(match: re.Match[str] | None) -> int:
    if match is None:
        raise ValueError("the text is not TOML")
    return match.end()
