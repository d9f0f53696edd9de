"""The command ``mailsvc``, and ``python -m mailsvc``."""

from __future__ import annotations

from mailsvc.interrupt import ends_quietly


def main() -> None:
    """Run it; ends with its status."""
    with ends_quietly():
        from mailsvc.cli import main as command  # noqa: PLC0415 - see mailsvc.interrupt
    command(prog_name="mailsvc")


if __name__ == "__main__":
    main()
