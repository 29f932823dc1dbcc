"""The release: the wheel built from the sdist, installed without the source tree, has every public name."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
import sys
import lit_training, lit_training.callbacks
from pathlib import Path
assert Path(lit_training.__file__).is_relative_to(sys.argv[1]), lit_training.__file__
for module in (lit_training, lit_training.callbacks):
    for name in module.__all__:
        getattr(module, name)
assert (Path(lit_training.__file__).parent / "py.typed").exists()
assert not (Path(sys.argv[1]) / "callbacks").exists(), "a top-level package `callbacks` was installed"
print(lit_training.__version__)
"""


def run(*command, cwd):
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77", reason="built without isolation, so that no network is needed")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, ROOT, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "source", filter="data")
    (source,) = (out / "source").iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, source, cwd=out)
    return next(out.glob("*.whl"))


def test_the_wheel_built_from_the_sdist_has_every_public_name(wheel, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    packages = sysconfig.get_paths()["purelib"]
    code = f"import sys; sys.path[:0] = [{str(site)!r}, {packages!r}]\n{CHECK}"
    version = run(sys.executable, "-I", "-S", "-c", code, site, cwd=tmp_path).strip()
    assert version in wheel.name


def test_importing_the_link_by_its_own_name_says_what_to_write(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", "import callbacks"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "from lit_training.callbacks import" in result.stderr


def test_a_checkout_on_the_path_needs_no_installation(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    spec = importlib.util.spec_from_file_location("checked_out", ROOT / "lit_training" / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__version__ == "0+checkout"
