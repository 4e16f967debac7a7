"""``python -m nvmeemu``."""

from nvmeemu.app.cli import main

raise SystemExit(main())
