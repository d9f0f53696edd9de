"""What is built and installed: the distributions' contents, and both kinds of install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = ["twisted/plugins/mailsvc_checkers.py", "twisted/plugins/mailsvc_plugin.py"]


def run(*command: str | Path, cwd: Path) -> str:
    """Its standard output; it must succeed.  The checkout is not on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, timeout=300,
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, (command, result.stdout[-4000:], result.stderr[-4000:])
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout to build in, without what is built or fetched."""
    target = tmp_path_factory.mktemp("source") / "mailsvc"
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(
        ".?*", "run", "build", "dist", "_build", "mutants", "htmlcov", "*.egg-info", "__pycache__",
        "dropin.cache"))
    return target


@pytest.fixture(scope="module")
def distributions(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the source archive lies, and the wheel built from it."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", target, source, cwd=source)
    return target


def test_distributions_wheel(distributions: Path, source: Path) -> None:
    [path] = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert sorted(name for name in names if name.startswith("twisted/")) == PLUGINS, (
        "another file there would overwrite Twisted's own, and uninstalling would delete it")
    expected = [str(file.relative_to(source)) for file in (source / "mailsvc").rglob("*")
                if file.is_file()]
    assert sorted(names) == sorted([*expected, *PLUGINS])


def test_distributions_metadata(distributions: Path) -> None:
    [path] = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        texts = {name.split(".dist-info/")[1]: wheel.read(name).decode()
                 for name in wheel.namelist() if ".dist-info/" in name}
    assert "The mailsvc developers" in texts["licenses/LICENSE"]
    assert "mailsvc = mailsvc.__main__:main" in texts["entry_points.txt"]
    assert "mailsvc-sendmail = mailsvc.__main__:sendmail" in texts["entry_points.txt"]
    assert "Requires-Python: >=3.11" in texts["METADATA"]


def test_distributions_source(distributions: Path, source: Path) -> None:
    """It has all that make needs: tests, documentation, units, the configuration's example."""
    [path] = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {str(file.relative_to(source)) for file in source.rglob("*")
                if file.is_file() and file.name not in {"SOURCES.txt"}}
    assert not {name for name in expected if "egg-info" not in name} - names


@pytest.mark.parametrize("options", [(), ("--editable",)], ids=["install", "editable"])
def test_installed(options: tuple[str, ...], source: Path, tmp_path: Path) -> None:
    """In a fresh environment: both commands work, and uninstalling leaves Twisted as it was."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    run(programs / "pip", "install", "--quiet", "--no-compile", *options, source, cwd=tmp_path)
    assert "Usage: mailsvc" in run(programs / "mailsvc", "--help", cwd=tmp_path)
    assert "mailsvc" in run(programs / "twistd", "--help", cwd=tmp_path)
    assert "--config" in run(programs / "twistd", "mailsvc", "--help", cwd=tmp_path)
    run(programs / "pip", "uninstall", "--quiet", "--yes", "mailsvc", cwd=tmp_path)
    after = run(programs / "twistd", "--help", cwd=tmp_path)
    assert "web" in after, "Twisted's own plugins are still there"
    assert "mailsvc" not in after
