"""Compiled code on disk: in which folder, and in files that no two processes can mix up.

Code is looked for in these folders in turn, down to the first that can be written; what is new is kept in that one:

    kernels/cpu/ready-made      in a wheel that was built so: for all processors of a level of x86-64; only read
    $NUMBA_CACHE_DIR            where it is set
    kernels/cpu/__pycache__     in the package; where that is read only, what `gkfast compile` has left there is used
    $XDG_CACHE_HOME/gkfast      or the system's own place for it: ~/.cache, ~/Library/Caches, %LOCALAPPDATA%
    gkfast-UID                  in the temporary folder, of this user alone

Where none can be written, nothing is kept. Code on disk is executed. So a folder or a file counts only if nobody may
write it but root, this user, and who may write this package: its owner, and its group where it is open to that.

A file's name says the function, its signature and the processor, its first bytes what else the code depends on: all
files of this folder, Numba's version and more. It is renamed into place when it is whole. (Numba's own cache compares
the date of one file, and numbers the files of a function by an index, in which two processes can pick one number for
two signatures.) So no process can load wrong code, with or without the lock, which some network file systems do not
have: it only spares a process from compiling what another one is compiling.
"""

import hashlib
import logging
import os
import pickle
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import numba
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from .processor import LEVEL

_PACKAGE = Path(__file__).resolve().parent
# what this Python may load
_SUFFIX = f".{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}.nbc"
# Windows has no such flags, and no mode bits that would say who may write
_POSIX = os.name == "posix"
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_MAKE = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
# longer than anything takes to compile
_PATIENCE = 120.0


class Place(NamedTuple):
    """A folder for compiled code; private: of this user alone, and no link to another one.

    level: what the code in it is for, if not for this processor alone.
    """

    path: Path
    private: bool = False
    level: str = ""

    def make(self) -> None:
        self.path.mkdir(0o700 if self.private else 0o755, parents=True, exist_ok=True)


# what all code here depends on; none in an archive, whose code cannot be told from another version's
_STAMP = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(_PACKAGE.glob("*.py")))


def _candidates() -> Iterator[Place]:
    if not _STAMP:
        return
    own = "cpu_" + hashlib.sha256(os.fsencode(_PACKAGE)).hexdigest()[:16]
    if config.CACHE_DIR:
        yield Place(Path(config.CACHE_DIR).absolute() / own)
    yield Place(_PACKAGE / "__pycache__")
    home = Path(os.path.expanduser("~"))
    system = {"win32": Path(os.environ.get("LOCALAPPDATA", "")), "darwin": home / "Library" / "Caches"}
    for base in (Path(os.environ.get("XDG_CACHE_HOME", "")), system.get(sys.platform, home / ".cache")):
        # of nobody's home ~ is left, which is no place
        if base.is_absolute():
            yield Place(base / "gkfast" / own)
            break
    # no temporary folder may be at hand either
    with suppress(OSError):
        temporary = Path(tempfile.gettempdir())
        yield Place(temporary / (f"gkfast-{os.geteuid()}" if _POSIX else "gkfast"), private=True)


def _distrust(info: os.stat_result, private: bool) -> str:
    """Why code from a file or folder may not be executed."""
    if not _POSIX:
        return ""
    package, user = os.stat(_PACKAGE), os.geteuid()
    if info.st_uid not in ({user} if private else {0, user, package.st_uid}):
        return f"it belongs to user {info.st_uid}"
    forbidden = stat.S_IWOTH | stat.S_IWGRP
    if private and stat.S_ISDIR(info.st_mode):
        forbidden = stat.S_IRWXO | stat.S_IRWXG
    elif not private and package.st_mode & stat.S_IWGRP and package.st_gid == info.st_gid:
        forbidden = stat.S_IWOTH
    return f"other users may use it, mode {stat.S_IMODE(info.st_mode):o}" if info.st_mode & forbidden else ""


class _Untrusted(OSError):
    pass


class _Folder:
    """An open folder: what is read and written is in the very folder that was checked."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.number: int | None = None
        if os.open not in os.supports_dir_fd:
            # Windows: the name must do
            if not place.path.is_dir():
                raise FileNotFoundError(2, "there is no such folder")
            return
        no_link = os.O_NOFOLLOW if place.private else 0
        self.number = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | no_link)
        why = _distrust(os.fstat(self.number), place.private)
        if why:
            os.close(self.number)
            raise _Untrusted(1, why)

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.number is not None:
            os.close(self.number)

    def _name(self, name: str) -> str:
        return name if self.number is not None else str(self.place.path / name)

    def open(self, name: str, flags: int) -> int:
        return os.open(self._name(name), flags, 0o644, dir_fd=self.number)

    def read(self, name: str) -> bytes:
        with open(self.open(name, _READ), "rb") as file:
            why = _distrust(os.fstat(file.fileno()), self.place.private)
            if why:
                raise _Untrusted(1, why)
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        temporary = f"{name}.{os.getpid()}-{secrets.token_hex(4)}"
        number = self.open(temporary, _MAKE | os.O_EXCL)
        try:
            with open(number, "wb") as file:
                if _POSIX and self.place.path == _PACKAGE / "__pycache__":
                    # whoever may read the package may use its code, whatever the umask; not all file systems can
                    with suppress(OSError):
                        os.fchmod(number, os.stat(__file__).st_mode & 0o644 | 0o600)
                file.write(content)
            place = {"src_dir_fd": self.number, "dst_dir_fd": self.number}
            os.replace(self._name(temporary), self._name(name), **place)
        except BaseException:
            with suppress(OSError):
                os.unlink(self._name(temporary), dir_fd=self.number)
            raise

    def probe(self) -> None:
        """Raises OSError where nothing can be written."""
        name = f"probe-{os.getpid()}-{secrets.token_hex(4)}"
        os.close(self.open(name, _MAKE | os.O_EXCL))
        os.unlink(self._name(name), dir_fd=self.number)


# where `fill` puts code
_into: list[Place] = []


def ready(folder: Path = _PACKAGE / "ready-made") -> Place:
    """Code for the level that this processor has."""
    return Place(folder / LEVEL, level=LEVEL)


def fill(folder: Path) -> None:
    """From now on code is compiled into `ready(folder)`, and looked for nowhere else."""
    _into[:] = [ready(folder)]
    reading.cache_clear()
    writing.cache_clear()


@cache
def reading() -> list[Place]:
    """The folders where code is looked for."""
    if _into:
        return _into
    places: list[Place] = []
    if LEVEL:
        with suppress(OSError), _Folder(ready()):
            places.append(ready())
    if config.CACHE_DIR:
        # whoever names a new folder wants it filled
        with suppress(OSError):
            next(_candidates()).make()
    for place in _candidates():
        with suppress(OSError), _Folder(place) as folder:
            places.append(place)
            folder.probe()
            break
    return places


@cache
def writing() -> tuple[Place | None, dict[Path, str]]:
    """The folder where new code is kept, made if need be, and why those before it are not."""
    refused = {}
    kept = None
    for place in _into or _candidates():
        try:
            place.make()
            with _Folder(place) as folder:
                folder.probe()
            kept = place
            break
        except OSError as error:
            refused[place.path] = error.strerror or str(error)
    if refused and config.CACHE_DIR:
        logging.getLogger("gkfast").warning(
            "NUMBA_CACHE_DIR must name a folder that this user can write and no other one can, got %r: %s; name "
            "another one. New compiled code is kept %s",
            *(config.CACHE_DIR, next(iter(refused.values())), f"in {kept.path}" if kept else "nowhere"),
        )
    return kept, refused


def places() -> list[str]:
    """In words: each folder that is used, what is in it and whether it can be written, and each that is not used."""
    kept, refused = writing()
    unused = dict(refused)
    used = list(dict.fromkeys([*reading(), *([] if kept is None else [kept])]))
    words = []
    for place in used:
        sizes = [path.stat().st_size for path in place.path.glob(f"*{_SUFFIX}")]
        why = f"for every {place.level}" if place.level else unused.pop(place.path, "not needed")
        access = "writable" if place == kept else f"only read ({why})"
        words.append(f"{place.path}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB, {access}")
    words += [f"{path}: not used ({why})" for path, why in unused.items()]
    if kept is None:
        words.append("new code is kept nowhere; set NUMBA_CACHE_DIR to a folder that this user alone can write")
    return words


@cache
def _processor(codegen: Any) -> Any:
    # LLVM may be at work, and would be waited for
    return codegen.magic_tuple()


class Code(_Cache):
    """The compiled code of one function: what Numba looks for before it compiles, and gives away to be kept."""

    _told = False

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        self._name = f"{Path(code.co_filename).stem}.{function.__qualname__}".replace("<", "").replace(">", "")
        closure = dumps(tuple(cell.cell_contents for cell in function.__closure__ or ()))
        self._identity = (self._name, hashlib.sha256(closure).hexdigest())
        # a function of another folder, in tests, is not among the files of the stamp
        path = Path(code.co_filename).resolve()
        source = b"" if path.parent == _PACKAGE else path.read_bytes()
        content = hashlib.sha256(_STAMP + source + code.co_code).hexdigest()
        self._content = (content, numba.__version__, llvmlite.__version__)

    def _file(self, place: Place, signature: Any, codegen: Any) -> tuple[str, bytes]:
        """Its name, and the digest that it begins with."""
        system, *processor = _processor(codegen)
        kind = repr((*self._identity, signature, (system, *([place.level] if place.level else processor))))
        name = f"{self._name}-{hashlib.sha256(kind.encode()).hexdigest()[:16]}{_SUFFIX}"
        return name, hashlib.sha256(repr((kind, self._content)).encode()).digest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        codegen = target_context.codegen()
        found = next(filter(None, (_find(place, *self._file(place, sig, codegen)) for place in reading())), None)
        if found is None:
            place, _ = writing()
            if place is not None:
                # another process may have compiled it meanwhile
                _wait_for_others(place)
                found = _find(place, *self._file(place, sig, codegen))
        return None if found is None else CompileResult._rebuild(target_context, *pickle.loads(found))

    def save_overload(self, sig: Any, data: Any) -> None:
        _unkept.append((self, sig, data))

    def keep(self, sig: Any, data: Any) -> None:
        """Waits for the machine code, and writes it."""
        data.library.make_code()
        place, _ = writing()
        if place is None or data.library.has_dynamic_globals or any(not part.can_cache for part in data.lifted):
            return
        name, digest = self._file(place, sig, data.codegen)
        content = dumps(data._reduce())
        try:
            with _Folder(place) as folder:
                folder.write(name, digest + hashlib.sha256(content).digest() + content)
        except OSError as error:
            # Windows lets nobody replace what another process has open, which is the same code
            if not Code._told and (_POSIX or not isinstance(error, PermissionError)):
                Code._told = True
                logging.getLogger("gkfast").warning("gkfast cannot keep compiled code in %s: %s", place.path, error)

    @property
    def cache_path(self) -> None:
        """Numba's statistics show it; the folders are `reading` and `writing`."""

    def enable(self) -> None:
        """Numba's name for what is always so."""

    def disable(self) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        raise NotImplementedError


def _find(place: Place, name: str, digest: bytes) -> bytes | None:
    with suppress(OSError), _Folder(place) as folder:
        content = folder.read(name)
        size = len(digest)
        # a power cut can leave less than was written
        if content[:size] == digest and content[size : 2 * size] == hashlib.sha256(content[2 * size :]).digest():
            return content[2 * size :]
    return None


# what is compiled, and not written yet
_unkept: list[tuple[Code, Any, Any]] = []


def keep() -> None:
    """Writes what has been compiled."""
    while _unkept:
        code, signature, data = _unkept[0]
        try:
            code.keep(signature, data)
        except Exception:
            # raised once; Ctrl-C leaves it to the next
            del _unkept[0]
            raise
        del _unkept[0]


# the lock, as an open file
_held: list[int] = []


def _wait_for_others(place: Place) -> None:
    """Until no other process compiles, where that can be told; this one then holds the lock until `release`."""
    if _held:
        return
    with suppress(OSError), _Folder(place) as folder:
        number = folder.open("lock", _MAKE)
        _held.append(number)
        end = time.monotonic() + _PATIENCE
        while not _locked(number) and time.monotonic() < end:
            time.sleep(0.05)


def release() -> None:
    """Lets other processes compile."""
    while _held:
        os.close(_held.pop())


try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None


def _locked(number: int) -> bool:
    """Whether this process has the lock now, or there is none; OSError where the file system has no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    elif msvcrt is not None:
        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
    return True
