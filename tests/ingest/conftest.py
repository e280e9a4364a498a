"""The command line, for tests of whole ingests."""

from tests.cli.conftest import kpstore_ as kpstore_
