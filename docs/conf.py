"""Sphinx configuration; ``make docs`` builds with warnings as errors."""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import mailsvc
from mailsvc.config import KEYS
from mailsvc.toml import literal

project = "mailsvc"
author = "The mailsvc developers"
copyright = "2026, The mailsvc developers"
version = release = mailsvc.__version__

extensions: list[str] = []
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "SMTP and POP3 mail service on Twisted",
    "fixed_sidebar": True,
}
html_show_sphinx = False


class ConfigurationKeys(SphinxDirective):
    """``configuration-keys``: every section and key, from their declarations."""

    def run(self) -> list[nodes.Node]:
        lines, section = [], ""
        for key in KEYS.values():
            if key.section != section:
                section = key.section
                title = f"[{section}]"
                lines += ["", title, "-" * len(title)]
            sentence = re.sub(r"([\\*`|_])", r"\\\1", key.sentence)
            lines += ["", f"``{key.name} = {literal(key.default)}``",
                      f"    {sentence} *{key.form}.*"]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    app.add_directive("configuration-keys", ConfigurationKeys)
