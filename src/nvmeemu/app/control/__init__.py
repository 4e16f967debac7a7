"""The control socket of a running ``nvmeemu serve``: JSON-RPC 2.0, a message a line. See docs/control.md.

with Control("/tmp/nvme.ctl") as control:  # nvmeemu serve --control /tmp/nvme.ctl ...
    fault = control.call("fault.add", match={"opcode": "write"}, do={"error": "EIO"})
    print(control.call("status"))
"""

from nvmeemu.app.control.client import Control, ControlError, Unreachable
from nvmeemu.app.control.messages import PROTOCOL

__all__ = ["PROTOCOL", "Control", "ControlError", "Unreachable"]
