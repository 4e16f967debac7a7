import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback; main has its own handlers, once it is loaded

from tools.guest.cli import main  # noqa: E402

sys.exit(main())
