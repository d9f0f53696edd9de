"""What strace saw a program do with files, and what an AppArmor profile would say to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

#: One use of a file: its path, and the letter of the permission that it needs.
Use = tuple[str, str]

_RULE = re.compile(r"^\s*(?P<not>deny\s+)?(?:owner\s+)?(?P<path>\"?[/@][^\s\"]*\"?)\s+"
                   r"(?P<modes>[rwlkmaixPpCcUu]+)\s*,", re.MULTILINE)
_VARIABLE = re.compile(r"^@\{(\w+)\}\s*(\+?=)\s*(.*)$", re.MULTILINE)


class Profile:
    """A profile with all that it includes, as ``apparmor_parser --preprocess`` prints it."""

    def __init__(self, text: str) -> None:
        variables: dict[str, list[str]] = {}
        for name, sign, values in _VARIABLE.findall(text):
            words = [word.strip('"') for word in values.split()]
            variables[name] = (variables.get(name, []) if sign == "+=" else []) + words
        self._rules = [(re.compile(_pattern(path)), found["modes"])
                       for found in _RULE.finditer(text) if not found["not"]
                       for path in _expanded(found["path"].strip('"'), variables)]

    def allows(self, path: str, mode: str) -> bool:
        """Whether a rule lets *path* be used by *mode*: r, w, l, k or x."""
        return any(mode in modes and pattern.fullmatch(path) for pattern, modes in self._rules)


def _expanded(path: str, variables: dict[str, list[str]]) -> Iterator[str]:
    found = re.search(r"@\{(\w+)\}", path)
    if found is None:
        yield path
        return
    for value in variables.get(found[1], []):
        yield from _expanded(path[:found.start()] + value + path[found.end():], variables)


def _pattern(glob: str) -> str:
    """The regular expression for AppArmor's *glob*."""
    # Stars that are all of a name stand for a character at least: /a/** is not /a/ itself.
    glob = re.sub(r"(?<=/)\*\*?(?=/|$)", r"?\g<0>", re.sub(r"//+", "/", glob))
    pieces: list[str] = []
    depth = 0
    for token in re.findall(r"\*\*|\[[^\]]*\]|\\.|.", glob):
        match token:
            case "**":
                pieces.append(".*")
            case "*":
                pieces.append("[^/]*")
            case "?":
                pieces.append("[^/]")
            case "{":
                depth += 1
                pieces.append("(?:")
            case "}":
                depth -= 1
                pieces.append(")")
            case "," if depth:
                pieces.append("|")
            case _:
                pieces.append(token if token[0] == "[" else re.escape(token[-1]))
    return "".join(pieces)


class Seen:
    """What a program, and all that it started, did with files.

    :param trace: of ``strace --follow-forks --decode-fds=path --trace=file,process,flock``.
    :param program: whose start in it counts.
    :param root: the root directory that it had.
    """

    def __init__(self, trace: str, program: str, root: Path) -> None:
        self._root = str(root.resolve())
        processes: set[str] = set()
        uses: set[Use] = set()
        for process, call in _calls(trace):
            if call.startswith(f'execve("{program}"'):
                processes.add(process)
            if process not in processes:
                continue
            if made := re.match(r"(?:clone3?|v?fork)\(.* = (\d+)$", call):
                processes.add(made[1])
            uses.update(self._of(call))
        self.uses = sorted(uses)

    def _of(self, call: str) -> Iterator[Use]:
        name, _, rest = call.partition("(")
        result = rest.rpartition(" = ")[2]
        if result.startswith("-1 "):
            return
        if name in {"open", "openat", "creat"}:
            path = self._inside(result.partition("<")[2].partition(">")[0])
            # AppArmor knows a directory by the slash at its end, however it is opened.
            if path != "/" and ("O_DIRECTORY" in rest or Path(self._root + path).is_dir()):
                path += "/"
            if re.search("O_WRONLY|O_RDWR|O_CREAT", rest):
                yield path, "w"
            if "O_WRONLY" not in rest:
                yield path, "r"
        elif name == "flock":
            path = self._inside(rest.partition("<")[2].partition(">")[0])
            for mode in "k" + "w" * ("LOCK_EX" in rest):
                yield path + "/" * Path(self._root + path).is_dir(), mode
        elif name == "execve":
            yield self._named(rest)[0], "x"
        elif re.match("unlink|rename|mkdir|rmdir", name):
            directory = "/" * (name in {"mkdir", "mkdirat", "rmdir"})
            for path in self._named(rest):
                yield path + directory, "w"
        elif name in {"link", "linkat"}:
            for path in self._named(rest)[1:]:
                yield path, "l"

    def _named(self, arguments: str) -> list[str]:
        """The absolute paths among *arguments*, those below a descriptor with its path before."""
        found = re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"',
                           arguments.partition(", [")[0])
        paths = [path if path.startswith("/") else f"{self._inside(place)}/{path}"
                 for place, path in found]
        return [path for path in paths if not path.startswith("/proc/self/fd/")]

    def _inside(self, path: str) -> str:
        inner = path.removeprefix(self._root)
        return inner or "/"


def _calls(trace: str) -> Iterator[tuple[str, str]]:
    """Each call with the process that made it; those that others interrupted are put together."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>\s*", call):
            call = begun.pop(process, "") + call[resumed.end():]
        yield process, call
