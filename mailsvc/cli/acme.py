"""``mailsvc acme``: the certificate that the service gets by itself."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from mailsvc.acme.files import Files
from mailsvc.certificates import CertificateProblem, certificate_at
from mailsvc.cli.listing import json_option, print_json
from mailsvc.cli.place import name, place_options, settings
from mailsvc.config import Settings
from mailsvc.plain import local_time


def _settings() -> Settings:
    found = settings()
    if not found.acme.names:
        raise click.ClickException(
            f"no certificate is asked for ({name()}): give acme.names the host names that it is "
            "for, and listeners.acme an endpoint, as tcp:80, or tcp:443 with acme.challenge "
            "tls-alpn-01")
    return found


@click.group()
def acme() -> None:
    """Show the certificate got by ACME, and get another.

    The service gets and renews it by itself where acme.names is set.

    \b
    Example:
      mailsvc acme show
    """


@acme.command()
@json_option
@place_options
def show(as_json: bool) -> None:
    """Show the certificate that there is.

    The keys in JSON are authority; names, those that it shall be for; and certificate, null or an
    object with file, names and until (seconds since 1970).

    \b
    Example:
      mailsvc acme show --json
    """
    found = _settings()
    files = Files(Path(found.service.data))
    try:
        certificate = certificate_at(str(files.certificate)).load()
    except CertificateProblem as problem:
        if files.certificate.exists():
            raise click.ClickException(str(problem)) from problem
        certificate = None
    if as_json:
        print_json({
            "authority": found.acme.directory, "names": found.acme.names,
            "certificate": certificate and {
                "file": str(files.certificate), "names": certificate.names,
                "until": certificate.not_after.timestamp()}})
    elif certificate is None:
        click.echo(f"There is none yet for {', '.join(found.acme.names)} from "
                   f"{found.acme.directory}; the log of the service says why, and `mailsvc acme "
                   "renew` tries it now.")
    else:
        days = int((certificate.not_after.timestamp() - time.time()) / 86_400)
        click.echo(f"{', '.join(certificate.names)}\n"
                   f"  from   {found.acme.directory}\n"
                   f"  until  {local_time(certificate.not_after.timestamp())} ({days} days)\n"
                   f"  in     {files.certificate}")


@acme.command()
@json_option
@place_options
def renew(as_json: bool) -> None:
    """Get a certificate now, whether there is a good one or not.

    The service has to run, since it answers the authority; it takes the certificate within a
    second.  Authorities allow some only of the same names in a week: use this to try things out.

    The keys in JSON are got, until (seconds since 1970) and again (seconds).

    \b
    Example:
      mailsvc acme renew
    """
    found = _settings()
    from mailsvc.acme import order  # noqa: PLC0415 - it takes a while

    files = Files(Path(found.service.data))
    try:
        outcome = order.renew(
            found.acme, files, at_once=True,
            tell=lambda step: None if as_json else click.echo(f"{step} …"))
    except order.Refused as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or files.directory}: {error.strerror}; run as "
                                   "the service's user or as root") from error
    if as_json:
        print_json(dataclasses.asdict(outcome))
    else:
        click.echo(f"The certificate is in {files.certificate}.")
