"""Whatever fails before a person's eyes says what to do, read from the source by ``ast``.

These are the texts of the exceptions that end a command or keep the service from starting.  A text
says what to do when it has a second clause that does (behind a semicolon or colon: "; see …",
": give …") or tells what was expected.  A text that only passes on another's is that other's
matter; and what stands in :data:`REVIEWED` was looked at, and says enough.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mailsvc"

#: What is raised, by the name it is called by; and the modules where that name means another thing.
RAISED = {
    "ClickException": (), "UsageError": (), "BadParameter": (), "_Trouble": (), "CannotStart": (),
    "Impossible": (), "ConfigurationError": (), "CertificateProblem": (), "SecretUnusable": (),
    "NoService": (), "_usage": ("gathering",), "Refused": ("smtp", "sasl", "doctor"),
}
#: ``self.fail(text, param, ctx)`` of click's types.
CLICK = "cli"

#: One of these begins what to do.
DOES = re.compile(
    r"(?:^|[;:.,?] |\n)(?:or |then |first |best |have |it )?"
    r"(?:add|begin|build|choose|copy|end|expected|fetch|get|give|go|install|leave|let|look|make|"
    r"mend|move|name|needs|pipe|put|read|run|save|say|see|set|start|stop|take|"
    r"try|use|wait|will be|write|`|--|\{\}$)|needs? a restart|is mailsvc running", re.IGNORECASE)

REVIEWED = {
    "certificates.py: {}; or delete it, and mailsvc makes a new one",
    "cli/__init__.py: {} Did you mean '{}'?",
    "backup/restore.py: {} is not empty; everything is restored into an empty data directory (mail "
    "is added to a running service with --account or --domain)",
    # The remedy is one of listeners._REMEDIES.
    "listeners.py: {} on {}: {}{}",
}


def texts() -> Iterator[tuple[str, str]]:
    """Where each is raised, and its text, with {} for what is filled in."""
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            ours = name in RAISED and not module.startswith(RAISED[name] or ("-",))
            if ours or (name == "fail" and isinstance(node.func, ast.Attribute)
                        and module.startswith(CLICK)):
                text = literal(node.args[0])
                # Only what is said here; {} alone passes on what was said elsewhere.
                if re.search("[A-Za-z]{2}", text) and not re.fullmatch(r"[^;]*:[ \n]\{\}", text):
                    yield f"{module}: {text}", text


def literal(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(literal, parts))
        case ast.FormattedValue(value=value) if re.search("strerror|_said", ast.unparse(value)):
            return "{...}"  # the system's words, or another server's, tell nobody what to do
        case ast.BinOp(left=left, right=right):
            return literal(left) + literal(right)
        case ast.List(elts=[one]):
            return literal(one)
        case ast.IfExp(body=body, orelse=orelse):
            return min(literal(body), literal(orelse), key=len)
    return "{}"


TEXTS = dict(texts())


@pytest.mark.parametrize("where", TEXTS)
def test_it_says_what_to_do(where: str) -> None:
    assert DOES.search(TEXTS[where]) or where in REVIEWED


def test_what_was_reviewed_is_still_said() -> None:
    assert not REVIEWED - set(TEXTS)


@pytest.mark.parametrize(("raised", "most"), [("DirectoryError", 1), ("fail", 2), ("warn", 2)])
def test_a_remedy_has_an_argument_of_its_own(raised: str, most: int) -> None:
    """None is empty: of refusals of the directory, and of what `mailsvc doctor` finds."""
    found = 0
    for path in ROOT.rglob("*.py"):
        inner = path.relative_to(ROOT).as_posix()
        if raised != "DirectoryError" and not inner.startswith(("doctor/", "cli/doctor.py")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == raised:
                found += 1
                remedy = node.args[most]
                assert not isinstance(remedy, ast.Constant) or remedy.value, ast.unparse(node)
    assert found > 3
