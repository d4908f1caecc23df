"""`python -m phitui`."""

import sys

from phitui.cli import main

sys.exit(main())
