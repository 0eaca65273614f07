"""`python -m wherever.cli` is the `wherever` command."""

import sys

from wherever.cli import main

sys.exit(main())
