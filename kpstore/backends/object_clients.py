"""Connections to object storage, for Icechunk and for kpstore itself, with the same credentials.

Credentials are looked up on each machine and are neither stored, logged nor pickled:

- S3: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_SESSION_TOKEN``; or a profile
  (``?profile=`` or ``AWS_PROFILE``, with boto3 also SSO and assumed roles); or those of the machine
  (web identity, container, instance). ``AWS_ENDPOINT_URL``, ``AWS_REGION``.
- Google: ``GOOGLE_APPLICATION_CREDENTIALS``, or those of the machine.
- Azure: ``AZURE_STORAGE_ACCOUNT_NAME`` with ``AZURE_STORAGE_ACCOUNT_KEY`` or
  ``AZURE_STORAGE_SAS_TOKEN``, or those of the machine.
"""

from __future__ import annotations

import configparser
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import icechunk

from kpstore.backends.object_address import ObjectAddress
from kpstore.errors import InvalidError, MissingExtraError, NotFoundError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_RETRIES, _RETRY_S = 8, 60
"""How often, and for how long, a request is repeated that a server was too busy for."""
_DEFAULT_REGION = "us-east-1"


def icechunk_storage(address: ObjectAddress) -> icechunk.Storage:
    """Return Icechunk's storage of a repository."""
    match address.scheme:
        case "s3":
            settings = _S3Settings.of(address)
            secret: dict[str, Any] = {"from_env": True}
            if settings.anonymous:
                secret = {"anonymous": True}
            elif settings.profile:
                secret = {"get_credentials": _Profile(settings.profile).for_icechunk}
            return icechunk.s3_storage(
                bucket=address.bucket,
                prefix=address.prefix,
                region=settings.region,
                endpoint_url=settings.endpoint or None,
                allow_http=settings.endpoint.startswith("http://"),
                # Servers other than Amazon's have no names for buckets.
                force_path_style=bool(settings.endpoint),
                **secret,
            )
        case "gs":
            how: dict[str, Any] = (
                {"anonymous": True} if address.is_anonymous else {"from_env": True}
            )
            if endpoint := address.option("endpoint"):
                how["config"] = {"google_base_url": endpoint, "allow_http": "true"}
            return icechunk.gcs_storage(bucket=address.bucket, prefix=address.prefix, **how)
        case _:
            azure = {"azure_endpoint": address.option("endpoint"), "azure_allow_http": "true"}
            return icechunk.azure_storage(
                account=_account(address),
                container=address.bucket,
                prefix=address.prefix,
                from_env=True,
                config=azure if address.option("endpoint") else None,
            )


def object_client(address: ObjectAddress) -> ObjectStore:
    """Return a client for the objects below an address's prefix.

    Raises
    ------
    MissingExtraError
        If obstore is not installed.
    """
    try:
        from obstore import store as stores
    except ImportError:
        raise MissingExtraError(f"{address.scheme}:// (object storage)", extra="objects") from None
    common: dict[str, Any] = {
        "prefix": address.prefix,
        "client_options": {"timeout": "60s", "connect_timeout": "10s"},
        "retry_config": {
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=_RETRY_S),
            "backoff": {
                "base": 2,
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=5),
            },
        },
    }
    endpoint = address.option("endpoint")
    if address.scheme == "s3":
        settings = _S3Settings.of(address)
        endpoint = settings.endpoint
        if settings.profile:
            common["credential_provider"] = _Profile(settings.profile).for_obstore
        if settings.anonymous:
            common["skip_signature"] = True
        if endpoint:
            common |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
        if endpoint.startswith("http://"):
            common["client_options"]["allow_http"] = True
        return stores.S3Store(address.bucket, region=settings.region, **common)
    if endpoint.startswith("http://"):
        common["client_options"]["allow_http"] = True
    if address.scheme == "gs":
        if address.is_anonymous:
            common["skip_signature"] = True
        if endpoint:
            common["config"] = {"base_url": endpoint}
        return stores.GCSStore(address.bucket, **common)
    if endpoint:
        common["endpoint"] = endpoint
    return stores.AzureStore(address.bucket, account_name=_account(address), **common)


def _account(address: ObjectAddress) -> str:
    account = address.option("account") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not account:
        raise InvalidError(
            f"{address}: which storage account? Add ?account=NAME, or set "
            "AZURE_STORAGE_ACCOUNT_NAME"
        )
    return account


# -- S3 --------------------------------------------------------------------------------------------


class _S3Settings(NamedTuple):
    """How to reach a bucket of S3, as Amazon's own tools find out.

    Parameters
    ----------
    profile : that credentials are to be taken from; ``""`` to let libraries look for them.
    """

    endpoint: str
    region: str
    profile: str
    anonymous: bool

    @classmethod
    def of(cls, address: ObjectAddress) -> _S3Settings:
        asked = address.option("profile")
        profile = asked or os.environ.get("AWS_PROFILE", "")
        config = _section(profile or "default", optional=not asked)
        given = os.environ.get
        endpoint = (
            address.option("endpoint")
            or given("AWS_ENDPOINT_URL_S3")
            or given("AWS_ENDPOINT_URL")
            or config.get("endpoint_url", "")
        )
        region = (
            address.option("region")
            or given("AWS_REGION")
            or given("AWS_DEFAULT_REGION")
            or config.get("region", _DEFAULT_REGION)
        )
        # Keys in the environment go before a profile that was not asked for by the address.
        if not asked and given("AWS_ACCESS_KEY_ID"):
            profile = ""
        elif not profile and {"aws_access_key_id", "aws_secret_access_key"} <= config.keys():
            profile = "default"
        anonymous = address.is_anonymous or given("AWS_SKIP_SIGNATURE", "").lower() == "true"
        return cls(endpoint, region, "" if anonymous else profile, anonymous)


def _section(profile: str, *, optional: bool = False) -> dict[str, str]:
    """Return what Amazon's two files say about a profile; :class:`NotFoundError` if nothing."""
    found: dict[str, str] = {}
    home = Path.home() / ".aws"
    files = {
        os.environ.get("AWS_CONFIG_FILE") or str(home / "config"): f"profile {profile}",
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or str(home / "credentials"): profile,
    }
    is_there = False
    for file, section in files.items():
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeError):
            raise InvalidError(f"{file} is not a file of AWS profiles; mend or move it") from None
        for name in (section, profile):
            if parser.has_section(name):
                found |= dict(parser[name])
                is_there = True
                break
    if not is_there and not optional:
        raise NotFoundError(f"profile {profile!r} is not in {' or '.join(files)}")
    return found


class _Profile:
    """Credentials of a profile, which are looked up where they are used; pickled as its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def for_icechunk(self) -> icechunk.S3StaticCredentials:
        """Return credentials as Icechunk takes them."""
        key, secret, token, until = self._found()
        return icechunk.S3StaticCredentials(
            access_key_id=key, secret_access_key=secret, session_token=token, expires_after=until
        )

    def for_obstore(self) -> dict[str, Any]:
        """Return credentials as obstore takes them."""
        key, secret, token, until = self._found()
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": token,
            "expires_at": until,
        }

    def _found(self) -> tuple[str, str, str | None, datetime | None]:
        section = _section(self.name)
        key, secret = section.get("aws_access_key_id"), section.get("aws_secret_access_key")
        if key and secret:
            return key, secret, section.get("aws_session_token"), None
        try:
            import boto3
        except ImportError:
            raise InvalidError(
                f"profile {self.name!r} holds no keys; for SSO and assumed roles, pip install boto3"
            ) from None
        held = boto3.Session(profile_name=self.name).get_credentials()
        if held is None:
            raise InvalidError(f"profile {self.name!r} gives no credentials")
        found, until = held.get_frozen_credentials(), getattr(held, "_expiry_time", None)
        return found.access_key, found.secret_key, found.token, until
