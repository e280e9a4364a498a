"""What makes a worker unfit, one thing at a time, in this process."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kpstore.backends.optional import Sidecar
from kpstore.backends.sidecar import FolderSidecar
from kpstore.errors import UnsupportedError
from kpstore.ingest import fitness, on_worker, own_code
from kpstore.ingest.fitness import Meeting, Question, flaws, question
from kpstore.ingest.job import Job
from kpstore.ingest.sight import look
from tests.fakes import FakeExtractor, FakeSource, record

SOURCE = FakeSource({"a": 2, "b": 3})


def asked(place: Sidecar | None = None, extractor: Any = None, **changes: Any) -> Question:
    """What this process asks of one like it."""
    records = [record("a", 2), record("b", 3)]
    pictures = tuple((video, look(SOURCE, video, whole=False).pixels) for video in records)
    job = Job("run", SOURCE, extractor or FakeExtractor(), meeting=place)
    return replace(question(job, nonce="nonce", pictures=pictures), **changes)


def test_a_worker_like_the_driver_is_fit_and_leaves_its_sign(tmp_path: Path) -> None:
    with Meeting(FolderSidecar(tmp_path / "kpstore"), nonce="nonce") as meeting:
        assert flaws(asked(meeting.place), "worker-1") == []
        assert meeting.flaws("worker-1") == []
        assert "does not arrive" in meeting.flaws("worker-2")[0]
    assert not (tmp_path / "kpstore" / "meeting").exists()


def test_another_store_is_noticed(tmp_path: Path) -> None:
    with Meeting(FolderSidecar(tmp_path / "s.kps" / "kpstore"), nonce="of another") as meeting:
        assert flaws(asked(meeting.place), "w") == [
            f"it sees another store than the driver at {tmp_path / 's.kps'}"
        ]


def other(**changes: Any) -> Any:
    return replace(fitness.fingerprint(), **changes)


@pytest.mark.parametrize(
    ("fingerprint", "expected"),
    [
        (other(kpstore="9.9"), ["kpstore is 0.1.0 there and 9.9 at the driver"]),
        (
            other(python="2.7"),
            [f"Python is 3.{sys.version_info.minor} there and 2.7 at the driver"],
        ),
        (other(libraries={"numpy": "9", "av": "not"}), ["av is", "numpy is"]),
        (other(libraries={}), []),
        (other(code={}), ["kpstore is 0.1.0 as at the driver, but other code: __init__.py and"]),
    ],
)
def test_other_code_is_named(fingerprint: Any, expected: list[str]) -> None:
    found = flaws(asked(fingerprint=fingerprint), "w")
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_code_that_changed_under_a_running_worker_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    question = asked()
    monkeypatch.setattr(fitness, "_when_loaded", other(code={}))
    with pytest.raises(UnsupportedError, match="changed since this process started; start again"):
        asked()
    assert flaws(question, "w") == [
        "kpstore or a library was changed after it started; start it again"
    ]


class OtherWeights(FakeExtractor):
    """Finds other weights in each process."""

    @property
    def recipe(self) -> Any:
        return {"extractor": "fake", "weights": {"net.bin": WEIGHTS}, "libraries": {"torch": "1"}}


WEIGHTS = "here"


@pytest.mark.parametrize("name", ["WEIGHTS"])
def test_other_weights_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    question = asked(extractor=OtherWeights())
    assert flaws(question, "w") == []
    monkeypatch.setitem(globals(), name, "there")
    assert flaws(question, "w") == [
        'points.weights.net.bin is "there" there and "here" at the driver'
    ]


def test_modules_of_the_users_own_are_compared_as_they_were_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_helper.py").write_text("FACTOR = 1\n")
    (tmp_path / "my_model.py").write_text(
        "import my_helper\nfrom tests.fakes import FakeExtractor\n\n\nclass Mine(FakeExtractor):\n "
        "   pass\n"
    )
    import my_model  # type: ignore[import-not-found]

    question = asked(extractor=my_model.Mine())
    assert {"my_model", "tests.fakes"} <= set(question.modules)
    assert not any(name.startswith(("kpstore", "numpy")) for name in question.modules)
    monkeypatch.delitem(sys.modules, "my_model")  # a worker that has not imported it yet
    assert flaws(question, "w") == []
    (tmp_path / "my_model.py").write_text("# changed\n")
    later = replace(question, modules={"my_model": own_code.hash_of(tmp_path / "my_model.py")})
    assert flaws(later, "w") == [
        "module 'my_model' is other code there than at the driver; start it again"
    ]
    missing = replace(question, modules={"not_there": "1"})
    assert flaws(missing, "w") == [
        "module 'not_there', which the driver uses, cannot be found there"
    ]


def test_libraries_that_the_users_own_code_imports_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_filter.py").write_text(
        "from tests.fakes import FakeExtractor\n\n\n"
        "class Filtered(FakeExtractor):\n    def open(self, device='cpu'):\n        from scipy "
        "import ndimage\n"
    )
    import my_filter  # type: ignore[import-not-found]

    question = asked(extractor=my_filter.Filtered())
    assert "scipy" in question.libraries
    monkeypatch.delitem(sys.modules, "my_filter")  # a worker that has not imported it yet
    assert flaws(question, "w") == []
    installed = question.libraries["scipy"]
    older = replace(question, libraries={**question.libraries, "scipy": "0.1"})
    assert flaws(older, "w") == [f"scipy is {installed} there and 0.1 at the driver"]
    assert flaws(replace(question, libraries={"not-there": "1"}), "w") == [], (
        "importing it fails by itself"
    )


SCRIPT = """
import scipy
import my_numbers
from tests.fakes import FakeExtractor

def helped(x):
    return scipy.ndimage.maximum(x)

class Direct(FakeExtractor):
    def open(self, device="cpu"):
        self.scale = my_numbers.FACTOR * scipy.ndimage.maximum(1)

class ByHelper(FakeExtractor):
    def open(self, device="cpu"):
        self.scale = helped(1)

class InLambda(FakeExtractor):
    def open(self, device="cpu"):
        self.scale = (lambda: scipy.ndimage.maximum(1))()

class Lazily(FakeExtractor):
    def open(self, device="cpu"):
        from scipy import ndimage
        self.scale = ndimage.maximum(1)

class Without(FakeExtractor):
    def open(self, device="cpu"):
        self.scipy = 1
"""


@pytest.mark.parametrize("kind", ["Direct", "ByHelper", "InLambda", "Lazily", "Without"])
def test_what_a_class_of_a_script_speaks_of_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_numbers.py").write_text("FACTOR = 1\n")
    script: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, script)
    question = asked(extractor=script[kind]())
    assert ("my_numbers" in question.modules) == (kind == "Direct")
    assert ("scipy" in question.libraries) == (kind != "Without")


def package(folder: Path, name: str, version: str, top: str) -> None:
    """Make an installed distribution with one empty module."""
    (folder / top).mkdir(exist_ok=True)
    (folder / top / "__init__.py").write_text("")
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "top_level.txt").write_text(top)
    (about / "RECORD").write_text(f"{about.name}/METADATA,,\n")


def test_only_libraries_that_the_code_needs_and_that_decide_numbers_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for name, top in (
        ("my-net", "my_net"),
        ("some-cloud", "kps_shared"),
        ("other-cloud", "kps_shared"),
        ("sdk", "kps_scripts"),
    ):
        package(site, name, "1.0", top)
    (site / "halfway-1.0.dist-info").mkdir()  # its metadata was removed
    (site / "halfway-1.0.dist-info" / "top_level.txt").write_text("halfway")
    (tmp_path / "kps_scripts").mkdir()
    (tmp_path / "kps_scripts" / "__init__.py").write_text("")
    (tmp_path / "my_project").mkdir()
    (tmp_path / "my_project" / "__init__.py").write_text("")
    (tmp_path / "my_project" / "main.py").write_text("import scipy\n")
    (tmp_path / "my_project" / "model.py").write_text("import my_net\n")
    (tmp_path / "my_project" / "extract.py").write_text(
        "import kps_shared, tqdm, kps_scripts\nfrom typing import TYPE_CHECKING\n"
        "from tests.fakes import FakeExtractor\n"
        "from . import model\n\nif TYPE_CHECKING:\n    import torch\n\n\nclass "
        "Mine(FakeExtractor):\n    pass\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(tmp_path)
    installed = (str(site), *own_code._installed())
    monkeypatch.setattr(own_code, "_installed", lambda: installed)
    own_code._distributions_of.cache_clear()
    import my_project.extract  # type: ignore[import-not-found]
    import my_project.main  # type: ignore[import-not-found]

    libraries = own_code.libraries(Job("run", SOURCE, my_project.extract.Mine()))
    own_code._distributions_of.cache_clear()
    assert libraries["my-net"] == "1.0"
    assert {"some-cloud", "other-cloud", "tqdm", "torch", "scipy", "halfway", "sdk"}.isdisjoint(
        libraries
    )


def test_a_library_that_was_installed_under_a_running_worker_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "my-late-net", "2.0", "my_late_net")
    monkeypatch.syspath_prepend(tmp_path)
    question = asked(libraries={"my-late-net": "2.0"})
    monkeypatch.setattr(own_code, "_process_began", lambda: 0.0)
    monkeypatch.setattr(own_code, "module_flaws", lambda modules: [])
    assert flaws(question, "w")[0] == "my-late-net was changed after it started; start it again"
    monkeypatch.setattr(own_code, "_process_began", lambda: float("inf"))
    assert flaws(question, "w") == []


def test_pictures_are_compared_and_what_cannot_be_read_is_named() -> None:
    pictures = asked().pictures
    wrong = ((pictures[0][0], pictures[1][1]), pictures[1])
    assert "it reads other pixels than the driver" in flaws(asked(pictures=wrong), "w")[0]
    missing = ((record("gone", 0), "1"),)
    assert flaws(asked(pictures=missing), "w")[0].startswith(
        "it cannot read video 'gone', which the driver can"
    )


def test_a_proof_that_fails_in_itself_is_a_flaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> list[str]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(on_worker, "flaws", fails)
    assert on_worker.prove(asked(), "run", "w") == ["OSError: [Errno 5] Input/output error"]
