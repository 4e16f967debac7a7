"""``python -m nvmeemu``."""

from nvmeemu.cli import main

raise SystemExit(main())
