"""`python -m r1hpc.rehearsal`."""

import sys

from r1hpc.rehearsal.cli import main

sys.exit(main())
