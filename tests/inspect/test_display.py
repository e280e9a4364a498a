"""What a store shows of itself: in a terminal, and as HTML that a notebook can trust."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

import kpstore
from kpstore.schema.feature import FeatureSpec
from tests.conftest import memory_location
from tests.fakes import record
from tests.store.data import fill


class Page(HTMLParser):
    """Tags, cells by line, and everything that would fetch or run something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.lines, self.foreign, self.text = (
            list[str](),
            list[list[str]](),
            list[str](),
            "",
        )
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
        self.foreign += [tag] if tag in ("script", "link", "style", "img", "b2") else []
        self.foreign += [name for name, _ in attrs if name != "style"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.lines[-1].append(data)


def page_of(shown: Any) -> Page:
    page = Page(shown._repr_html_())
    assert not page.foreign
    return page


def test_text_says_what_there_is(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("a failure") as tx:
        tx.fail("points", "d", "no")
    newest = store.at()
    assert repr(newest).splitlines() == [
        f"<kpstore.Store {newest.name!r}, 4 videos, 34 frames",
        f"  {newest.location} at {newest.snapshot}",
        "  train 3/25, dev 1/9",
        "  points 5 point × 3 space per frame float32: videos 2 done, 1 failed, 1 pending>",
    ]


def test_html_says_the_same_and_the_size(store: kpstore.Store) -> None:
    filled = fill(store)
    filled.tag("v1")
    page = page_of(filled)
    assert ["train", "3", "25"] in page.lines
    assert page.lines[-1] == [
        "points",
        "5 point × 3 space per frame",
        "float32",
        "2.0 kB",
        "2",
        "0",
        "2",
    ]
    assert f"{filled.snapshot} (v1)" in page.text
    assert ("on disk" in page.text) == (not filled.location.startswith("memory://"))


def test_looking_reads_neither_masks_nor_values(
    memory_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = fill(memory_store)
    original, reads = filled.reader.read_slice, list[str]()

    def counted(name: str, *rest: Any) -> Any:
        reads.append(name)
        return original(name, *rest)

    monkeypatch.setattr(filled.reader, "read_slice", counted)
    assert repr(filled)
    assert filled._repr_html_()
    assert set(reads) == {"video_id", "split", "n_frames", "points_state"}


def test_names_and_annotations_are_escaped() -> None:
    store = kpstore.create(memory_location(), name="<script>alert('x')</script>")
    with store.transaction("odd words") as tx:
        tx.add_videos([record("<b2>&", 2, '"><script>', gloss="<img src=x>")])
        tx.add_feature(FeatureSpec("pose", description="<style>", units="<b2>"))
    opened = store.at()
    assert "<script>alert('x')</script>" in page_of(opened).text
    assert ["(none)", "1"] not in page_of(opened).lines
    page = page_of(opened.video("<b2>&"))
    assert ["gloss", "<img src=x>"] in page.lines
    assert ["pose is", "pending"] in page.lines
    assert ["long_name", "<style>"] in page_of(opened["pose"]).lines


def test_an_empty_store_shows_itself(store: kpstore.Store) -> None:
    assert repr(store).startswith("<kpstore.Store ")
    assert "0 videos, 0 frames" in page_of(store).text
    with store.transaction("a feature") as tx:
        tx.add_feature(FeatureSpec("pose"))
    assert page_of(store.at()).lines[-1][:3] == ["pose", "one per frame", "float32"]
