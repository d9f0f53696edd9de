"""``mailsvc config``: check a configuration file, show what is in effect, print the example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mailsvc import plain
from mailsvc.certificates import (
    CertificateProblem,
    Watched,
    authorities_in,
    certificate_at,
    revocations_in,
)
from mailsvc.cli import place
from mailsvc.cli.diff import diff
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import place_options, settings
from mailsvc.config import (
    ConfigurationError,
    Settings,
    key_named,
    load,
    reference,
)
from mailsvc.contradictions import contradictions, unanswered
from mailsvc.jsonschema import json_schema
from mailsvc.toml import literal
from mailsvc.webhooks.signing import SecretUnusable, secrets_at

file_argument = click.argument("file", metavar="[FILE]", required=False, default=None,
                               type=click.Path())


def _loaded(file: str | None) -> Settings:
    if file is None:
        return settings()
    try:
        return load(file)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error


def unusable(loaded: Settings) -> Iterator[tuple[str, CertificateProblem | SecretUnusable]]:
    """The files without which the service would not start, by the key that names them."""
    tls, relay, hooks = loaded.tls, loaded.relay, loaded.webhooks
    files: list[tuple[str, Watched[Any]]] = [
        ("tls.certificates", certificate_at(path)) for path in dict.fromkeys(tls.certificates)]
    for key, path, kind in (("tls.client_ca", tls.client_ca, authorities_in),
                            ("tls.client_crl", tls.client_crl, revocations_in),
                            ("relay.authorities", relay.authorities, authorities_in),
                            ("webhooks.authorities", hooks.authorities, authorities_in)):
        if path:
            files.append((key, kind(path)))
    for key, file in files:
        try:
            file.load()
        except CertificateProblem as problem:
            yield key, problem
    if hooks.urls:
        try:
            secrets_at(hooks.secret)
        except SecretUnusable as unusable:
            yield "webhooks.secret", unusable


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command()
@file_argument
@place_options
def check(file: str | None) -> None:
    """List every mistake in FILE, or say that it is ok.

    What does not go together in it is a mistake, too: a port that two listeners want, say.
    Certificates and the other files that it names are looked at too; what only the user that runs
    the service may read is noted.  Exit status 1 when there is a mistake.  Without FILE it is the
    file of --config, or /etc/mailsvc.toml if there is one.

    \b
    Example:
      mailsvc config check /etc/mailsvc.toml
    """
    loaded = _loaded(file)
    problems = list(contradictions(loaded))
    for key, problem in unusable(loaded):
        if problem.hidden:
            click.echo(f"Note: {key}: {problem}; or run this as the user that runs the service",
                       err=True)
        else:
            problems.append(f"{loaded.where(key)}: {key}: {problem}")
    if problems:
        raise click.ClickException("\n".join(problems))
    if (unanswerable := unanswered(loaded)) is not None:
        click.echo(f"Note: {unanswerable}, unless `twistd mailsvc` is given --acme", err=True)
    if not Path(loaded.service.data).is_dir():
        click.echo(f"Note: there is no directory {loaded.service.data} (service.data) here; make "
                   "it before the service starts, and give it to the user that runs it", err=True)
    click.echo(f"{file or place.name()}: ok")


@config.command()
@file_argument
@json_option
@place_options
def show(file: str | None, as_json: bool) -> None:
    """Show the values in effect.

    Those that FILE does not set are marked as defaults.

    \b
    With --json it is an object of sections, which are objects of keys; a key has
      value    what is in effect, {data} and the host name filled in
      given    whether FILE sets it
      where    where it does: FILE:LINE, or null
      default  what it would be otherwise, as in `mailsvc config reference`
      unit     octets, seconds, ... or ""

    \b
    Example:
      mailsvc config show --json | jq .smtp.message_octets.value
    """
    loaded = _loaded(file)
    if as_json:
        sections: dict[str, dict[str, Any]] = {}
        for key, value in loaded.entries():
            sections.setdefault(key.section, {})[key.name] = {
                "value": value, "given": str(key) in loaded.given,
                "where": loaded.given.get(str(key)), "default": key.default, "unit": key.unit}
        print_json(sections)
        return
    section = ""
    for key, value in loaded.entries():
        if key.section != section:
            click.echo(f"{chr(10) if section else ''}[{key.section}]")
            section = key.section
        mark = "" if str(key) in loaded.given else "  # default"
        click.echo(f"{key.name} = {literal(value)}{mark}")


@config.command()
@click.argument("key")
@file_argument
@json_option
@place_options
def why(key: str, file: str | None, as_json: bool) -> None:
    """Say what KEY is, and which line of FILE makes it so.

    KEY is as in smtp.message_octets.  Without FILE it is the file of --config, or /etc/mailsvc.toml
    if there is one.

    \b
    Example:
      mailsvc config why smtp.message_octets
    """
    loaded = _loaded(file)
    try:
        found = key_named(key)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    value = next(value for each, value in loaded.entries() if each == found)
    where = loaded.given.get(key)
    if as_json:
        print_json(plain.setting(found, value, where))
        return
    unit = f"  # {found.unit}" if found.unit else ""
    click.echo(f"{key} = {literal(value)}{unit}")
    if where is None:
        click.echo(f"  the default; {file or place.name()} does not set it")
    else:
        click.echo(f"  from {where}; the default is {literal(found.default)}")
    click.echo(click.wrap_text(found.sentence, 79, "  ", "  "))


config.add_command(diff)


@config.command("reference")
def print_reference() -> None:
    """Print the commented example, with every key.

    Each has its default, type, unit and meaning.

    \b
    Example:
      mailsvc config reference > mailsvc.toml
    """
    click.echo(reference(), nl=False)


@config.command("schema")
def print_schema() -> None:
    """Print a JSON Schema of the configuration file.

    Editors that know TOML by it complete keys, explain them and mark what is wrong.

    \b
    Example:
      mailsvc config schema > mailsvc.schema.json
    """
    print_json(json_schema())
