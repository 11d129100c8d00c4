"""The package as it is built and installed: what it says of itself, what is in it, and that it works from anywhere."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rlhf.config import REPO

OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy that pip may build in."""
    copy = tmp_path_factory.mktemp("package") / "checkout"
    copy.mkdir()
    for file in (*REPO.glob("*.toml"), *REPO.glob("*.txt"), *REPO.glob("*.md"), *REPO.glob("LICENSE")):
        shutil.copy(file, copy)
    for folder in ("src", "conf", "recipes"):
        shutil.copytree(REPO / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return copy


def pip(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def python(code: str, site: Path) -> subprocess.CompletedProcess[str]:
    """Run from another folder, with what was installed into `site` before what this environment has, this checkout perhaps."""
    code = f"import site; [site.addsitedir(place) for place in {[str(site), sysconfig.get_path('purelib')]}]\n{code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=site, timeout=120
    )


def requirements(file: str) -> list[str]:
    return [line for line in (REPO / file).read_text().splitlines() if line and not line.startswith("#")]


def test_a_wheel_holds_the_package_and_says_what_it_is(checkout, tmp_path):
    pip("wheel", *OFFLINE, "--wheel-dir", tmp_path, checkout)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        archive.extractall(tmp_path / "site")
    modules = {path.relative_to(REPO / "src").as_posix() for path in (REPO / "src/rlhf").rglob("*.py")}
    pages = {path.relative_to(REPO / "src").as_posix() for path in (REPO / "src/rlhf/web/pages").iterdir()}
    assert {file for file in files if not file.startswith(info)} == modules | pages and len(modules) > 80 and pages
    assert (metadata["Name"], metadata["Version"]) == ("rlhf-recipes", "0.1.0")
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Summary"] and "RLHF" in str(metadata.get_payload())
    needed = metadata.get_all("Requires-Dist") or []
    stated = {one.name: one.specifier for one in map(Requirement, needed) if one.marker is None}
    pins = {one.name: one.specifier for one in map(Requirement, requirements("requirements.txt"))}
    newest = {one.name: one.specifier for one in map(Requirement, requirements("requirements-newest.txt"))}
    assert stated.keys() == pins.keys() and newest.keys() == {name for name in pins if stated[name] != pins[name]}
    for name, pin in (*pins.items(), *newest.items()):
        assert str(pin).startswith("==") and str(pin).removeprefix("==") in stated[name], name
    for extra, listed in {
        "test": ("test", "benchmarks", "web", "cluster"),
        "benchmarks": ("benchmarks",),
        "web": ("web",),
        "cluster": ("cluster",),
    }.items():
        lines = [line.partition(";")[0].strip() for line in needed if f'extra == "{extra}"' in line]
        assert lines == [line for name in listed for line in requirements(f"requirements-{name}.txt")]

    done = python("from rlhf.config import compose_config; compose_config([])", tmp_path / "site")
    assert "installed away from its checkout" in done.stderr and "pip install --editable" in done.stderr, done.stderr


def test_an_editable_install_is_imported_from_anywhere_and_the_doors_are_no_modules(checkout, tmp_path):
    apart = ("--prefix", tmp_path, "--ignore-installed")  # without the last pip uninstalls what this environment has
    pip("install", *OFFLINE, *apart, "--editable", checkout)
    (info,) = tmp_path.rglob("*.dist-info")
    code = (
        "import rlhf; from rlhf.config import compose_config, options\n"
        "print(rlhf.__file__, compose_config(['recipe=support/dpo']).method.name, *options('debug'))\n"
        "import importlib.util; print([name for name in ('train', 'chat', 'plan') if importlib.util.find_spec(name)])"
    )
    done = python(code, info.parent)
    assert done.stdout.split("\n")[:2] == [f"{checkout}/src/rlhf/__init__.py dpo none overfit smoke", "[]"], (
        done.stdout + done.stderr
    )
