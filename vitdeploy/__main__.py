"""`python -m vitdeploy` runs the command line."""

import sys

from vitdeploy.cli import main

sys.exit(main())
