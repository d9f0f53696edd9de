# Needs Python 3.11 or newer (with its venv module), git and make; nothing else.
#
#   make run        install into .venv and serve mail on loopback, with data in ./run
#   make test       install the test extras and run every test
#   make check      ruff, mypy, documentation, packaging and news fragments
#   make coverage   branch coverage of the protocol cores and the store, 98 % at least
#   make bench      measure against the mail servers installed here
#   make man        the manual pages, into build/man
#   make deb        a Debian package, into build/deb
#   make clean      remove .venv and everything built; ./run, with its mail, stays
#
# make PYTHON=python3.12 … picks an interpreter, make RUN="--smtp 2026" … adds options to
# `mailsvc dev`, make TEST="tests/test_wire.py -x" … narrows the tests, make JOBS=1 … runs one at a
# time.

PYTHON ?= python3
VENV ?= .venv
RUN ?=
TEST ?=
# How many tests run at once: with files named one, so that a debugger can be used; else one more
# than there are processors, as many wait for something most of the time, and four at most.
JOBS ?= $(if $(findstring tests/,$(TEST)),0,$(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4))))

BIN := $(VENV)/bin
# The stamps depend on setup.cfg and pyproject.toml: an edit there installs anew, none installs twice.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517

.PHONY: run test check lint types docs man deb packaging news coverage bench peers nodemailer axe kerberos clean

run: $(VENV)/.installed
	@exec $(BIN)/mailsvc dev --dir run --hints $(RUN)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	    $(TEST)

# `make -k check` goes on to the next after one that fails.
check: lint types docs packaging news

lint: $(VENV)/.installed-check
	$(BIN)/ruff check .

types: $(VENV)/.installed-check
	$(BIN)/mypy mailsvc twisted/plugins

docs: $(VENV)/.installed-check
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

man: $(VENV)/.installed
	$(BIN)/python -m mailsvc.cli.manual build/man

deb: $(VENV)/.installed
	PIP="$(BIN)/python -m pip" etc/debian/build

# Both distributions and what is in them; `make test` installs them as well.
packaging: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/test_packaging.py -k distributions

news: $(VENV)/.installed-check
	$(BIN)/towncrier build --draft --version next

coverage: $(VENV)/.installed-test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q --ignore-glob='tests/test_interop_*' \
	    --ignore=tests/test_kill.py --ignore=tests/test_memory.py --ignore=tests/test_packaging.py
	$(BIN)/coverage report

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.bench

# Exim, OpenSMTPD and aiosmtpd, unpacked where neither the benchmark nor tests/test_relay_peers.py
# and tests/test_federation.py disturb what is installed.
peers: $(VENV)/.installed-test
	$(BIN)/python -m tests.bench.fetch

# The Node.js mail client that tests/test_interop_smtp.py drives.
nodemailer: $(VENV)/.nodemailer

# The accessibility checker that tests/test_console_browser.py runs in Chromium.
axe: $(VENV)/.axe

# What tests/test_sasl_gssapi.py needs; pip builds it against libkrb5-dev, which few have.
kerberos: $(VENV)/.kerberos

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "mailsvc needs Python 3.11 or newer; $(PYTHON) is older or missing." >&2; \
	    echo "Install one and name it: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) could not make a virtual environment." >&2; \
	    echo "On Debian and Ubuntu its venv module is a package of its own:" >&2; \
	    echo "    sudo apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created setup.cfg pyproject.toml
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.installed-check: $(VENV)/.installed
	$(INSTALL) -e '.[check]'
	@touch $@

$(VENV)/.kerberos: $(VENV)/.installed-test
	$(INSTALL) -e '.[gssapi]'
	@touch $@

$(VENV)/.nodemailer: $(VENV)/.created Makefile
	npm install --silent --no-package-lock --prefix $(VENV) nodemailer@7
	@touch $@

$(VENV)/.axe: $(VENV)/.created Makefile
	npm install --silent --no-package-lock --prefix $(VENV) axe-core@4
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build htmlcov .coverage mailsvc.egg-info \
	    .pytest_cache .mypy_cache .ruff_cache .hypothesis
