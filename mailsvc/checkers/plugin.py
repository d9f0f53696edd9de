"""The factories that ``twisted.cred.strcred`` finds: light, for every twistd user imports them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.strcred import ICheckerFactory
from twisted.plugin import IPlugin
from zope.interface import Interface, implementer


@implementer(ICheckerFactory, IPlugin)
class CheckerFactory:
    """Makes the checkers of ``--auth NAME:…``.

    The module ``mailsvc.checkers.NAME`` has a text ``HELP``, a class ``Settings``, and a function
    ``checker`` of the argument string; it imports its library when that is called, not before.

    :param name: what stands before the colon.
    :param interfaces: the credentials that are checked.
    :param format: the arguments, in a line.
    """

    def __init__(self, name: str, interfaces: tuple[type[Interface], ...], format: str) -> None:
        self.authType = name
        self.credentialInterfaces = interfaces
        self.argStringFormat = format

    @property
    def authHelp(self) -> str:
        from mailsvc.checkers.arguments import explain  # noqa: PLC0415

        module = self._module()
        return f"{module.HELP}\n{explain(module.Settings)}"

    def generateChecker(self, argstring: str) -> ICredentialsChecker:
        return self._module().checker(argstring)

    def _module(self) -> Any:
        return import_module(f"mailsvc.checkers.{self.authType}")
