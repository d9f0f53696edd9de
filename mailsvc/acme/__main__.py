"""``python -m mailsvc.acme``: :func:`mailsvc.acme.order.renew` for the service.

On standard input is JSON with ``data``, a path, and ``settings``, the [acme] section; on standard
output what came of it: got, until and again, or ``refused`` with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from mailsvc.acme.files import Files
from mailsvc.acme.limits import ACMESettings
from mailsvc.acme.order import Refused, renew

asked = json.load(sys.stdin)
try:
    outcome = renew(ACMESettings(**asked["settings"]), Files(Path(asked["data"])))
except (Refused, OSError) as error:
    print(json.dumps({"refused": str(error)}))
else:
    print(json.dumps(dataclasses.asdict(outcome)))
