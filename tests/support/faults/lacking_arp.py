# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider whose kernel has no nftables for ARP, which no kernel at hand lacks: nft and the probe say so."""

from __future__ import annotations

import shutil
import sys

from qubes_guestnet.lab.qube import Qube

_FOLDER = "/run/lab/lacking"
_PROBE = """
import importlib.abc, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "qubes_guestnet.system.nft.families":
            return None
        sys.meta_path.remove(self)
        import importlib.util
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.has = lambda family: False
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
_NFT = """#!/bin/sh
[ "$*" = "-f -" ] || exec {real} "$@"
text=$(cat)
case $text in
*" arp "*) echo "Error: Could not process rule: Operation not supported" >&2; exit 1 ;;
esac
exec {real} -f - <<END
$text
END
"""


def lacking(qube: Qube) -> dict[str, str]:
    """Have it so from now on in a qube; the environment for each program of ours there."""
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert program is not None
    real = f"{_FOLDER}/real-nft"
    qube.write(f"{_FOLDER}/sitecustomize.py", _PROBE)
    qube.write(f"{_FOLDER}/nft", _NFT.format(real=real))
    qube.run("sh", "-ec", f"cp {program} {real}; chmod +x {_FOLDER}/nft; mount --bind {_FOLDER}/nft {program}")
    return {"PYTHONPATH": ":".join((_FOLDER, *sys.path))}
