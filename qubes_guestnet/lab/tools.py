# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs the lab runs, and the Debian packages that have them."""

from __future__ import annotations

import shutil

from .namespaces import LabError, unpacked_programs

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {
    "dnsmasq": "dnsmasq-base",
    "getent": "libc-bin",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
}


def require(*tools: str) -> None:
    """LabError, naming everything that is missing and the one command that installs it, unless all are there.

    Args:
        tools: keys of PACKAGES; none: all of them.
    """
    unpacked = unpacked_programs()  # the lab shows them at /usr once it has namespaces
    path = f"{PATH}:{unpacked}/bin:{unpacked}/sbin" if unpacked else PATH
    missing = [tool for tool in tools or PACKAGES if shutil.which(tool, path=path) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[tool] for tool in missing}))
        raise LabError(f"the lab needs {', '.join(missing)}", f"apt-get install {packages}")
