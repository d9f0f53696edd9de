"""The commands ``mailsvc``, also ``python -m mailsvc``, and ``mailsvc-sendmail``.

Ctrl-C ends them without a word from the first line on: this file imports nothing before it has seen
to that, and ``_signal`` is what every Python has loaded when it starts.
"""

import _signal as signal  # type: ignore[import-not-found]

# As it ends other programs.  Where it does something else, that is meant.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run ``mailsvc``; ends with its status."""
    from mailsvc.cli import main as command  # noqa: PLC0415 - see above

    command(prog_name="mailsvc")


def sendmail() -> None:
    """Run ``mailsvc-sendmail``; ends with its status."""
    from mailsvc.sendmail import main as command  # noqa: PLC0415 - see above

    command()


if __name__ == "__main__":
    main()
