"""`python -m metarepair`, for jobs that run from a checkout."""

import sys

from metarepair.cli import main

sys.exit(main())
