"""The modules and libraries that a user's own extractor or source needs on a worker."""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from kpstore.ingest.job import Job

NO_NUMBERS = frozenset(
    {
        *("click", "cloudpickle", "dask", "distributed", "hydra-core", "matplotlib", "psutil"),
        *("pytest", "rich", "tensorboard", "tqdm", "typer", "typing-extensions", "wandb"),
    }
)
"""Distributions that do not affect numbers; their versions may differ within a cluster."""

_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})
# The clock of process start times is coarser than that of files
_CLOCK_S = 2.0


def modules(job: Job) -> dict[str, str]:
    """Return a hash of the file of each module that a worker imports for a job.

    Of installed packages, only the modules with the classes of extractor and source count.
    """
    needed = {name: file for name in _needed_by(job) if (file := _file_of(name))}
    found = {name: file for name, file in needed.items() if _is_installed(file)}
    tops = {_top(name) for name in needed.keys() - found.keys()}
    for name in list(sys.modules):
        if _top(name) in tops and (file := _file_of(name)) and not _is_installed(file):
            found[name] = file
    return {name: hash_of(Path(found[name])) for name in sorted(found)}


def libraries(job: Job) -> dict[str, str]:
    """Return the version of each distribution that this code imports, in functions as well.

    The modules of extractor and source are searched, and the user's own modules that they import.
    """
    needed = _needed_by(job)
    waiting = list(needed)
    seen: set[str] = set()
    imported: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file = _file_of(name)
        if not file or (_is_installed(file) and name not in needed):
            imported.add(_top(name))
        else:
            waiting += _imports(name, file)
    own = {_top(name) for name in seen if (file := _file_of(name)) and not _is_installed(file)}
    known = _distributions_of()
    # A folder that several distributions share, such as google, does not tell which one is meant.
    names = {name for top in imported - own for name in known.get(top, ()) if len(known[top]) == 1}
    return versions(sorted(names - NO_NUMBERS - {"kpstore"}))


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed distributions, without the build number after a ``+``."""
    found = {}
    for name in names:
        try:
            version: str | None = distribution(name).version
        except PackageNotFoundError:
            continue
        if version:  # a broken installation may have none
            found[name] = version.partition("+")[0]
    return found


def changed_libraries(names: Iterable[str]) -> list[str]:
    """Return the distributions that were installed after this process started."""
    began, found = _process_began(), []
    for name in names:
        try:
            files = distribution(name).files or ()
        except PackageNotFoundError:
            continue
        about = next((file for file in files if file.name in ("METADATA", "PKG-INFO")), None)
        path = None if about is None else Path(str(about.locate()))
        if path is not None and path.exists() and _changed_at(path) > began:
            found.append(name)
    return found


@cache
def _distributions_of() -> dict[str, set[str]]:
    """Return the distributions that install each top-level module; damaged ones are left out."""
    found: dict[str, set[str]] = {}
    for one in distributions():
        try:
            name = str(one.metadata["Name"] or "").lower().replace("_", "-")
            said = (one.read_text("top_level.txt") or "").split()
            files = () if said else one.files or ()
        except Exception:  # half-removed packages raise whatever they lack
            continue
        tops = said or {
            file.parts[0].partition(".")[0]
            for file in files
            if file.suffix in (".py", ".so", ".pyd")
        }
        for top in tops if name else ():
            found.setdefault(top, set()).add(name)
    return found


def _needed_by(job: Job) -> set[str]:
    """Return the modules of the classes of extractor and source, and those that they refer to."""
    found: set[str] = set()
    for thing in (job.extractor, job.source):
        for value in (thing, *getattr(thing, "__dict__", {}).values()):
            for kind in type(value).__mro__:
                found.add(kind.__module__)
                if _travels(kind.__module__):
                    found |= _used_by(kind)
    return found - {""}


def _used_by(kind: type) -> set[str]:
    """Return the modules that a class refers to: if it is sent by value, they are not sent."""
    found: set[str] = set()
    functions = [
        getattr(method, "__func__", getattr(method, "fget", getattr(method, "func", method)))
        for method in vars(kind).values()
    ]
    seen: set[int] = set()
    while functions:
        function = functions.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        for code in _codes(function.__code__):
            steps = list(dis.get_instructions(code))
            found |= {step.argval for step in steps if step.opname == "IMPORT_NAME"}
            for name in {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}:
                value: object = function.__globals__.get(name)
                home = (
                    value.__name__
                    if isinstance(value, ModuleType)
                    else getattr(value, "__module__", None)
                )
                if isinstance(home, str):
                    found.add(home)
                if isinstance(value, FunctionType) and _travels(value.__module__):
                    functions.append(value)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object, and those of the functions within it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _codes(part)


def _imports(module: str, file: str) -> Iterator[str]:
    """Yield the modules that a file imports, except those for type checkers only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user saw them when the module was imported
            tree = ast.parse(Path(file).read_bytes(), file)
    except (OSError, SyntaxError, ValueError):
        return
    package = module if Path(file).name == "__init__.py" else module.rpartition(".")[0]
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            home = ".".join([*parts, *([node.module] if node.module else [])])
            if home:
                yield home
                yield from (f"{home}.{alias.name}" for alias in node.names)


def _top(module: str) -> str:
    return module.partition(".")[0]


def _file_of(module: str) -> str:
    """Return the Python file of a module; ``""`` if it need not be compared."""
    top = _top(module)
    if top in ("kpstore", "numpy", "") or top in sys.stdlib_module_names or _travels(module):
        return ""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file if file.endswith(".py") else ""


def _travels(module: str) -> bool:
    """Whether the classes of a module are sent to workers by value."""
    import cloudpickle

    by_value = cloudpickle.list_registry_pickle_by_value()
    return module == "__main__" or any(
        module == name or module.startswith(f"{name}.") for name in by_value
    )


@cache
def _installed() -> tuple[str, ...]:
    return tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def _is_installed(file: str) -> bool:
    # An environment may build on another one's packages, or on the system's and the user's.
    return file.startswith(_installed()) or not _PACKAGE_FOLDERS.isdisjoint(Path(file).parts)


# A hash of each of the user's modules when this process imported it, as far as known
_loaded: dict[str, str] = {}


def module_flaws(expected: Mapping[str, str]) -> list[str]:
    """Return the first thing that is wrong with the user's own modules in this process.

    Parameters
    ----------
    expected : a hash of each, by name; see :func:`modules`.
    """
    for name, wanted in expected.items():
        was_loaded = name in sys.modules
        try:
            spec = None if was_loaded else importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        file = (
            getattr(sys.modules.get(name), "__file__", None) if was_loaded else spec and spec.origin
        )
        if not file:
            return [f"module {name!r}, which the driver uses, cannot be found there"]
        if name not in _loaded and was_loaded and _changed_at(Path(file)) > _process_began():
            return [f"module {name!r} was changed after it started; start it again"]
        now = hash_of(Path(file))
        found = _loaded[name] = _loaded.get(name, now) if was_loaded else now
        if found != wanted:
            again = "; start it again" if now == wanted else ""
            return [f"module {name!r} is other code there than at the driver{again}"]
    return []


def hash_of(path: Path) -> str:
    """Return a hash of a file, or the reason why it cannot be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        return f"not readable: {error.strerror}"


def _changed_at(path: Path) -> float:
    found = path.stat()
    return max(found.st_mtime, found.st_ctime)


def _process_began() -> float:
    import psutil  # which Dask brings

    began: float = psutil.Process().create_time()
    return began + _CLOCK_S
