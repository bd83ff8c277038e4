"""The wheel holds all that an installed Scalade needs: every package, its data files, the studies and the license."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from places import ROOT

CODE = {"bench", "cli", "kernels", "launch", "parallelism", "results"}
DATA = ("*.json", "*.csv", "*.html", "*.css", "*.js", "py.typed")


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_folder_of_code_is_a_package_of_the_wheel():
    listed = set(setup()["options"]["packages"].split())
    found = {"scalade"}
    for top in CODE:
        found |= {"scalade." + ".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / top).rglob("*.py")}
    assert found == listed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the checkout or taken from it."""
    folder = tmp_path_factory.mktemp("wheel")
    skip = (".*", "tests", "docs", "build", "dist", "*.egg-info", "scalade-results", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*skip))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, folder / "source"], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_license_studies_and_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    for path in (ROOT / "studies").glob("*.toml"):
        assert f"scalade/studies/{path.name}" in names
    data = [path for top in CODE for pattern in DATA for path in (ROOT / top).rglob(pattern)]
    data += ROOT.glob("py.typed")
    assert data and {f"scalade/{path.relative_to(ROOT)}" for path in data} <= names
    assert not [name for name in names if name.startswith(("scalade/tests", "tests"))]


@pytest.mark.slow
def test_an_installed_wheel_starts_from_another_folder(wheel, tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    zipfile.ZipFile(wheel).extractall(site)
    here.mkdir()
    env = os.environ | {"PYTHONPATH": str(site)}

    def run(*command):
        words = [sys.executable, *command]
        done = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import scalade; print(scalade.__file__)").startswith(str(site))
    assert run("-m", "scalade", "init").endswith("next: scalade run first.toml\n")
    assert "would run: 12 runs of 6 cases" in run("-m", "scalade", "run", "first.toml", "--dry-run")
    assert (here / "studies" / "quickstart.toml").is_file()
