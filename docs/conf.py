"""Sphinx configuration; ``make docs`` builds with warnings as errors."""

import mailsvc

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
