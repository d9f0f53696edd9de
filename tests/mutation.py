"""Are the tests able to fail?  Changes one thing at a time in a module and runs its tests.

    python -m tests.mutation [--jobs N] [--minutes N] [--from LINE] [--to LINE]
        MODULE... -- TESTS...

as in ``python -m tests.mutation mailsvc/wire.py -- tests/test_wire.py``.  TESTS are run one after
the other until one fails, so name first what notices most and takes least; what begins with a
hyphen, as ``-k=whole``, goes to pytest with each.  A change is a comparison,
condition, constant, operator or returned value turned into another, or a statement left out.  Each
is made in a copy of the checkout; a run that takes three times as long as a plain one has failed.
What the tests do not notice is printed, the line with what became of it, and counted in the exit
status.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import math
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# Loaded here once, so that no run has to load them again; no reactor is installed by any of them.
import hypothesis  # noqa: F401
import idna  # noqa: F401
import pytest
import twisted.internet.defer  # noqa: F401

ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")
#: What a run needs besides the packages; runtime directories and repositories stay out.
COPIED = ("mailsvc", "tests", "twisted", "setup.cfg", "pyproject.toml")
#: A change that allocates without end must not take the machine with it.
MEMORY = 4 << 30

SWAPS: dict[type[ast.AST], type[Any]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}

STATEMENTS = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete, ast.Continue, ast.Break)


class Mutant(NamedTuple):
    """One change: where it is, what the line became, and the whole source with it."""

    path: Path
    line: int
    text: str
    source: str


def is_text(statement: ast.AST) -> bool:
    """Whether *statement* is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def children(node: ast.AST) -> Iterator[ast.AST]:
    """*node* and all below it that runs: no annotations, decorators and docstrings."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not is_text(child):
                yield from children(child)


def edits(node: ast.AST) -> Iterator[tuple[Any, Any, Any]]:
    """Each way to change *node*, as (owner, its attribute or index, the new value)."""
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            yield node, "op", SWAPS[type(op)]()
        case ast.Compare(ops=ops):
            yield from ((ops, n, SWAPS[type(op)]()) for n, op in enumerate(ops))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, "operand", ast.UnaryOp(ast.Not(), operand)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield node, "test", ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool(value)):
            yield node, "value", not value
        case ast.Constant(value=int(value)):
            yield node, "value", value + 1
            yield node, "value", value - 1
        case ast.Constant(value=str(value)):
            yield node, "value", value + "X"
        case ast.Constant(value=bytes(value)):
            yield node, "value", value + b"X"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield node, "value", ast.Constant(None)
    if not isinstance(node, ast.Module | ast.ClassDef):
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for n, statement in enumerate(block if isinstance(block, list) else ()):
                if isinstance(statement, STATEMENTS) and not is_text(statement):
                    yield block, n, ast.copy_location(ast.Pass(), statement)


def mutants(path: Path, first: int = 0, last: float = math.inf) -> Iterator[Mutant]:
    """Every change of the module at *path* from line *first* to line *last*."""
    tree = ast.parse((ROOT / path).read_text())
    plain = ast.unparse(tree).splitlines()
    for node in list(children(tree)):
        for owner, key, new in list(edits(node)):
            in_list = isinstance(owner, list)
            old = owner[key] if in_list else getattr(owner, key)
            line = getattr(old, "lineno", getattr(node, "lineno", 0))
            if not first <= line <= last:
                continue
            owner.__setitem__(key, new) if in_list else setattr(owner, key, new)
            source = ast.unparse(tree)
            owner.__setitem__(key, old) if in_list else setattr(owner, key, old)
            changed = next(
                (after.strip() for before, after in zip(plain, source.splitlines(), strict=False)
                 if before != after), "")
            yield Mutant(path, line, changed, source)


def run_tests(copy: Path, tests: list[str]) -> None:
    """Run *tests* in *copy* and exit with what pytest says; in a process of its own."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    # A change of the same length within the same second would pass for the module cached.
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mailsvc", "tests")]:
        del sys.modules[name]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # At once: a test that failed may have left threads that sys.exit would wait for.
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def passes(copy: Path, tests: list[str], seconds: float) -> bool:
    """Whether each of *tests* passes in *copy*, with *seconds* for all."""
    until = time.monotonic() + seconds
    options = [each for each in tests if each.startswith("-")]
    for test in [each for each in tests if each not in options]:
        process = FORK.Process(target=run_tests, args=(copy, [*options, test]))
        process.start()
        process.join(max(until - time.monotonic(), 0))
        process.kill()
        process.join()
        if process.exitcode != 0:
            return False
    return True


def checkout(copy: Path) -> Path:
    """A copy of what the tests need, made the first time; with what is compiled of it."""
    if not copy.is_dir():
        copy.mkdir()
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name,
                                ignore=shutil.ignore_patterns("node_modules"))
            else:
                shutil.copy(ROOT / name, copy / name)
    return copy


def survives(
    mutant: Mutant, copies: Path, tests: list[str], seconds: float, until: float
) -> bool | None:
    """Whether *tests* pass with the change; None, untried, when the time is *until*."""
    if time.monotonic() > until:
        return None
    copy = checkout(copies / str(os.getpid()))
    module = copy / mutant.path
    plain = module.read_text()
    Path(importlib.util.cache_from_source(str(module))).unlink(missing_ok=True)
    module.write_text(mutant.source)
    try:
        return passes(copy, tests, seconds)
    finally:
        module.write_text(plain)


def main() -> int:
    """Run as a program; returns the number of survivors, 100 at most."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=60, help="begin no run after so long")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="LINE",
                        help="change nothing before it")
    parser.add_argument("--to", dest="last", type=int, default=math.inf, metavar="LINE",
                        help="change nothing behind it")
    parser.add_argument("modules", nargs="+", type=Path, metavar="MODULE")
    ours, _, theirs = " ".join(sys.argv[1:]).partition(" -- ")
    options, tests = parser.parse_args(ours.split()), theirs.split()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = [mutant for module in options.modules
             for mutant in mutants(module, options.first, options.last)]
    survivors = untried = 0
    with tempfile.TemporaryDirectory() as directory:
        copies = Path(directory)
        started = time.monotonic()
        if not passes(checkout(copies / "plain"), tests, 3600):
            sys.exit("the tests fail before anything is changed")
        plain = time.monotonic() - started
        print(f"{len(found)} changes; a plain run takes {plain:.1f} s", flush=True)
        until = time.monotonic() + 60 * options.minutes
        attempt = functools.partial(survives, copies=copies, tests=tests, seconds=5 + 3 * plain,
                                    until=until)
        with ProcessPoolExecutor(options.jobs, mp_context=FORK) as pool:
            for mutant, survived in zip(found, pool.map(attempt, found), strict=True):
                untried += survived is None
                if survived:
                    survivors += 1
                    print(f"{mutant.path}:{mutant.line}: {mutant.text}", flush=True)
    if untried:
        print(f"the time was up before the last {untried} were tried")
    print(f"{survivors} of {len(found) - untried} not noticed")
    return min(survivors, 100)


if __name__ == "__main__":
    sys.exit(main())
