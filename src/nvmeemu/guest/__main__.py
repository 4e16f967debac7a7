import sys

from nvmeemu.guest.cli import main

sys.exit(main())
