"""`python -m specgen`."""

from specgen.cli.main import main

main()
