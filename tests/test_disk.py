"""Where compiled code is read and kept: a package that is read only, no home, folders that others can write.

The children run as another user than root, with a copy of the package.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import gkfast
from gkfast.kernels import cpu
from gkfast.kernels.cpu import disk, precompile

USER = 12345
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="modes and owners of files are POSIX's"),
]
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can act as another user")

# Python itself may lie where only root can read: what it needs is loaded before it becomes another user
CHILD = """
import argparse, concurrent.futures.thread, os, sys, numpy, numba
from importlib.metadata import version
version("numba")
numba.njit(lambda x: numpy.zeros(x).sum())(3)
user = int(sys.argv[1])
if user:
    os.setgroups([]), os.setgid(user), os.setuid(user)
import gkfast
from gkfast.cli import main
from gkfast.kernels.cpu import compiled, disk
if sys.argv[2] == "compile":
    sys.exit(main(["compile"]))
value = 0.0
if sys.argv[2] == "rbf":
    x = numpy.arange(12.0).reshape(4, 3)
    value = float(gkfast.rbf(x, x[:3], 5.0).sum())
else:
    # one function that takes little time to compile
    from gkfast.kernels.cpu import baselines
    one = numpy.ones((1, 1))
    baselines(one[None], one[None], one)
print(gkfast.__file__, value, compiled.compiled_here(), compiled.folder(), sep="|")
print(*disk.places(), sep="\\n")
"""


class Site:
    """A package of its own in a folder that all may read, and what a process of another user does with it."""

    def __init__(self, root):
        self.root = root
        self.home, self.temporary = root / "home", root / "temporary"
        for folder in (self.home, self.temporary):
            folder.mkdir()
            self.give(folder)
        source = Path(gkfast.__file__).parent
        kernels = disk._PACKAGE.parent
        shutil.copytree(source, root / "gkfast", ignore=shutil.ignore_patterns("kernels", "__pycache__"))
        shutil.copytree(kernels, root / "gkfast" / "kernels", ignore=shutil.ignore_patterns("lock", "*.pyc", "*.nbi"))
        self.cache = root / "gkfast" / "kernels" / "cpu" / "__pycache__"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))},
            **{"PYTHONPATH": str(root), "HOME": str(self.home), "TMPDIR": str(self.temporary)},
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def give(self, path, user=USER):
        if IS_ROOT:
            os.chown(path, user, user)

    def close(self):
        """Nobody else than root may write the package."""
        for path in [self.root / "gkfast", *(self.root / "gkfast").rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)

    def of_rbf(self):
        """The files of one function that rbf needs, for one signature of which it takes a second to compile."""
        paths = list(self.cache.glob("rbf._matrix-*"))
        assert paths
        return paths

    def lose(self):
        return [path.unlink() or path.name for path in self.of_rbf()]

    def start(self, call, **environment):
        return subprocess.run(
            [sys.executable, "-c", CHILD, str(USER if IS_ROOT else 0), call],
            **{"cwd": "/", "env": self.environment | environment, "capture_output": True, "text": True},
            **{"check": False, "timeout": 120},
        )

    def run(self, call="rbf", **environment):
        """How many functions were compiled, where they are kept, what is said about places, the log."""
        done = self.start(call, **environment)
        assert done.returncode == 0, done.stderr
        first, *places = done.stdout.splitlines()
        package, value, count, folder = first.split("|")
        assert package == str(self.root / "gkfast" / "__init__.py")
        if call == "rbf":
            x = np.arange(12.0).reshape(4, 3)
            np.testing.assert_allclose(float(value), gkfast.rbf(x, x[:3], 5.0, backend="reference").sum(), rtol=1e-13)
        return int(count), folder, places, done.stderr


@pytest.fixture
def site():
    # what the copies begin with
    x = np.arange(12.0).reshape(4, 3)
    gkfast.rbf(x, x[:3], 5.0)
    cpu.baselines(x[None], x[None], np.ones((1, 1)))
    # pytest's own folder is closed to others
    root = Path(tempfile.mkdtemp(prefix="gkfast-test-"))
    root.chmod(0o755)
    yield Site(root)
    for path in [root, *root.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(root)


def test_a_read_only_package_with_all_code_needs_no_home(site):
    site.close()
    before = sorted(site.cache.iterdir())
    count, _, places, log = site.run(HOME="/nonexistent", TMPDIR=str(site.root))
    assert count == 0
    assert "gkfast" not in log
    assert places[0].startswith(f"{site.cache}: ")
    assert "only read" in places[0]
    assert sorted(site.cache.iterdir()) == before


def test_what_a_read_only_package_lacks_is_kept_in_the_users_folder(site):
    lost = site.lose()
    site.close()
    before = sorted(site.cache.iterdir())
    count, folder, places, log = site.run()
    assert count == 1
    assert "keeps them in" in log
    assert Path(folder).parent == site.home / ".cache" / "gkfast"
    (kept,) = Path(folder).glob("*.nbc")
    assert kept.name in lost
    assert not Path(folder).stat().st_mode & 0o022
    assert sorted(site.cache.iterdir()) == before
    assert ["only read" in place for place in places] == [True, False]
    assert places[1].endswith("writable")
    assert site.run()[:2] == (0, folder)
    # and elsewhere where that is said
    count, elsewhere, _, _ = site.run(XDG_CACHE_HOME=str(site.temporary))
    assert count == 1
    assert Path(elsewhere).parent == site.temporary / "gkfast"


def test_without_a_home_new_code_is_kept_in_a_private_temporary_folder(site):
    site.lose()
    site.close()
    user = USER if IS_ROOT else os.geteuid()
    for _ in range(2):
        count, folder, _, _ = site.run(HOME="/nonexistent")
        assert folder == str(site.temporary / f"gkfast-{user}")
        info = os.lstat(folder)
        assert stat.S_IMODE(info.st_mode) == 0o700
        assert info.st_uid == user
    assert count == 0


@pytest.mark.parametrize("trap", ["of another user", "open to others", "a link"])
def test_a_temporary_folder_that_is_not_private_is_left_alone(site, trap):
    lost = site.lose()
    kept = shutil.copytree(disk._PACKAGE / "__pycache__", site.root / "planted")
    site.close()
    user = USER if IS_ROOT else os.geteuid()
    trapped = site.temporary / f"gkfast-{user}"
    if trap == "a link":
        (site.root / "planted").chmod(0o700)
        site.give(site.root / "planted")
        trapped.symlink_to(site.root / "planted")
    else:
        shutil.copytree(kept, trapped)
        trapped.chmod(0o777)
        if trap == "of another user":
            if not IS_ROOT:
                pytest.skip("only root can act as another user")
            trapped.chmod(0o755)
            site.give(trapped, USER + 1)
        else:
            site.give(trapped)
    assert all((trapped / name).exists() for name in lost)
    count, folder, places, log = site.run(HOME="/nonexistent")
    assert (count, folder) == (1, "None")
    assert "keeps them nowhere, as no folder can be written; set NUMBA_CACHE_DIR" in log
    assert any(place.startswith(f"{trapped}: not used") for place in places)


@as_root
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_package_cache_that_others_can_write_is_not_executed(site, what):
    site.close()
    assert site.run("baselines")[0] == 0
    for path in [site.cache] if what == "folder" else site.cache.glob("baselines._baselines-*"):
        path.chmod(path.stat().st_mode | 0o002)
    count, folder, places, _ = site.run("baselines")
    assert count == 1
    assert Path(folder).parent == site.home / ".cache" / "gkfast"
    if what == "folder":
        assert any(place.startswith(f"{site.cache}: not used (other users may") for place in places)


@as_root
def test_a_package_that_a_group_may_write_may_have_a_cache_that_it_may_write(site):
    site.close()
    site.cache.chmod(0o575)
    assert site.run("baselines")[0] == 1
    site.cache.parent.chmod(0o575)
    assert site.run("baselines", XDG_CACHE_HOME=str(site.temporary))[0] == 0


def test_a_writable_package_keeps_its_code(site):
    for path in [site.root / "gkfast", *(site.root / "gkfast").rglob("*")]:
        site.give(path)
    site.lose()
    assert site.run()[:2] == (1, str(site.cache))
    assert site.run()[:2] == (0, str(site.cache))
    assert not list(site.home.iterdir())


def test_a_damaged_file_is_compiled_anew(site):
    site.close()
    for path in site.of_rbf():
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-100])
    assert site.run()[0] == 1
    assert site.run()[0] == 0


def test_numba_cache_dir_comes_first(site):
    site.close()
    named = site.home / "named"
    count, folder, _, log = site.run("baselines", NUMBA_CACHE_DIR=str(named))
    assert count == 1
    assert Path(folder).parent == named
    assert "NUMBA_CACHE_DIR" not in log
    assert site.run("baselines", NUMBA_CACHE_DIR=str(named))[:2] == (0, folder)


@as_root
def test_numba_cache_dir_that_others_can_write_is_refused_aloud(site):
    site.lose()
    site.close()
    named = site.home / "named"
    _, folder, _, _ = site.run("baselines", NUMBA_CACHE_DIR=str(named))
    Path(folder).chmod(0o777)
    assert site.run("baselines", NUMBA_CACHE_DIR=str(named))[0] == 0
    count, elsewhere, _, log = site.run(NUMBA_CACHE_DIR=str(named))
    assert count == 1
    assert Path(elsewhere).parent == site.home / ".cache" / "gkfast"
    assert "NUMBA_CACHE_DIR must name a folder that this user can write and no other one can" in log


def test_compile_says_where_code_is_read_and_kept(site):
    for _ in precompile.compile_everything():
        pass
    shutil.copytree(disk._PACKAGE / "__pycache__", site.cache, dirs_exist_ok=True)
    site.close()
    done = site.start("compile")
    assert done.returncode == 0, done.stderr
    *_, package, users, kept = done.stdout.splitlines()
    assert re.fullmatch(rf"{site.cache}: \d+ files, [\d.]+ MiB, only read \(Permission denied\)", package)
    folder = kept.removeprefix("kept in ")
    assert Path(folder).parent == site.home / ".cache" / "gkfast"
    assert users == f"{folder}: 0 files, 0.0 MiB, writable"
    # nowhere
    trapped = site.temporary / f"gkfast-{USER if IS_ROOT else os.geteuid()}"
    trapped.write_text("no folder")
    done = site.start("compile", HOME="/nonexistent")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "nothing was to be compiled"
    site.cache.chmod(0o755)
    site.lose()
    site.cache.chmod(0o555)
    done = site.start("compile", HOME="/nonexistent")
    assert done.returncode == 1
    assert f"{trapped}: not used" in done.stdout
    assert "new code is kept nowhere; set NUMBA_CACHE_DIR" in done.stdout
    assert done.stderr.endswith("what was compiled is lost with this process\n")
