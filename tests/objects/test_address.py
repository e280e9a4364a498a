"""Addresses say where a store is and how to reach it, and hold no secrets."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import kpstore
from kpstore.backends.object_address import ObjectAddress, parse_address
from kpstore.errors import InvalidError, NotFoundError, UnsupportedError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/a/b.kps", "s3://bucket/a/b.kps"),
        ("S3://bucket//a///b.kps/", "s3://bucket/a/b.kps"),
        (
            "s3://bucket/b.kps?region=eu-west-1&endpoint=http://localhost:9000",
            "s3://bucket/b.kps?endpoint=http://localhost:9000&region=eu-west-1",
        ),
        ("gs://bucket/数据/b.kps", "gs://bucket/数据/b.kps"),
        ("az://container/b.kps?account=mine", "az://container/b.kps?account=mine"),
    ],
)
def test_an_address_is_parsed_and_written_in_one_form(given: str, expected: str) -> None:
    address = parse_address(given)
    assert str(address) == expected
    assert parse_address(str(address)) == address
    assert isinstance(pickle.loads(pickle.dumps(address)), ObjectAddress)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("s3://bucket", "name a place in the bucket, for example s3://my-bucket/phoenix.kps"),
        ("s3://bucket/", "name a place in the bucket"),
        ("s3:///x.kps", "use s3://bucket/prefix"),
        ("s3://B UCKET/x.kps", "use s3://bucket/prefix"),
        ("s3://bucket/../x.kps", "'..' cannot be a part"),
        ("s3://bucket/a#b.kps", "use s3://bucket/prefix"),
        ("s3://bucket/a%20b.kps", "'a%20b.kps' cannot be a part"),
        ("s3://bucket/x.kps?secret_access_key=hidden", "may say endpoint, region, profile"),
        ("s3://bucket/x.kps?endpoint=localhost:9000", "an endpoint is http:// or https://, a host"),
        ("s3://bucket/x.kps?anonymous=perhaps", "true or false"),
        ("s3://bucket/x.kps?endpoint=http://me:hidden@host", "an endpoint is http://"),
        ("s3://bucket/x.kps?endpoint=http://host/?sig=hidden", "an endpoint is http://"),
        ("s3://bucket/x.kps?key:hidden", "is not name=value"),
        ("s3://bucket/x.kps#hidden", "use s3://bucket/prefix"),
        ("s3://bucket/x.kps?hidden=1", "may say endpoint"),
        ("gs://bucket/x.kps?region=here", "may say endpoint, anonymous"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(given: str, told: str) -> None:
    with pytest.raises(InvalidError) as caught:
        kpstore.open(given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidError, match="holds no user") as caught:
        kpstore.open("s3://key:hidden@bucket/x.kps")
    assert "hidden" not in str(caught.value)


def test_hdf5_files_stay_on_local_disks() -> None:
    with pytest.raises(UnsupportedError, match=r"without \.h5 for a store in object storage"):
        kpstore.create("s3://bucket/phoenix.h5")


def test_an_address_that_went_through_pathlib_is_noticed() -> None:
    with pytest.raises(InvalidError, match="give it as text"):
        kpstore.open(Path("s3://bucket/x.kps"))


def test_addresses_of_files_are_paths(tmp_path: Path) -> None:
    kpstore.create(f"file://{tmp_path}/a%20b.kps")
    assert kpstore.open(tmp_path / "a b.kps").name == "a b.kps"
    with pytest.raises(NotFoundError, match=r"c\.kps does not exist"):
        kpstore.open(f"file://{tmp_path}/c.kps")
    with pytest.raises(InvalidError, match="a file on this machine is file:///path"):
        kpstore.open("file://elsewhere/c.kps")


def test_an_unknown_kind_of_address_names_those_that_there_are() -> None:
    with pytest.raises(UnsupportedError, match="at s3://, gs:// or az://"):
        kpstore.open("ftp://server/x.kps")


def test_a_store_without_a_folder_has_no_place_for_pictures() -> None:
    from kpstore.backends.places import folder_of

    with pytest.raises(InvalidError, match="name one by --root"):
        folder_of("s3://bucket/x.kps", "--root")
