"""`python -m lmstack` is `lmstack`."""

from lmstack.cli.main import run

run()
