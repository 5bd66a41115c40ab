"""``python -m dtimer``: the same as the command ``dtimer``."""

import sys

from dtimer.cli import main

sys.exit(main())
