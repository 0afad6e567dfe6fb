# SPDX-License-Identifier: GPL-2.0-or-later
"""Our package, built, installed by apt into minimal Debian images, and booted. Needs root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.machines import image, packages
from tests.support.machines.kinds import Kind
from tests.support.machines.machine import APT, Machine, Mounts
from tests.support.machines.made_once import once

SUITES = tuple(os.environ.get("GUESTNET_TEST_SUITES", "bookworm trixie").split())
# veth plays the driver of Xen. Between the builtin that finds the driver out and the rules that ask for it.
DRIVER_RULE = 'SUBSYSTEM=="net", ENV{ID_NET_DRIVER}=="veth", ENV{ID_NET_DRIVER}="vif"'

Boot = Callable[..., Machine]


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() == 0:
        return
    message = "systemd-nspawn and overlay mounts need root: sudo make test-system"
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session", params=SUITES)
def base(request: pytest.FixtureRequest, _root: None) -> Path:
    return image.base(request.param)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, _root: None) -> Path:
    """Our package, as the tree is now."""
    return once(tmp_path_factory, "ours", packages.ours)


@pytest.fixture(scope="session")
def following(tmp_path_factory: pytest.TempPathFactory, _root: None) -> Path:
    """The same as a later version."""
    return once(tmp_path_factory, "following", lambda folder: packages.ours(folder, "9.0-1"))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, _root: None) -> list[Path]:
    """What our package needs of Qubes OS."""
    return [once(tmp_path_factory, "binding", packages.binding), once(tmp_path_factory, "store", packages.store)]


@pytest.fixture(scope="session")
def core_agent(tmp_path_factory: pytest.TempPathFactory, _root: None) -> Path:
    return once(tmp_path_factory, "core-agent", packages.core_agent)


@pytest.fixture(scope="session")
def mounts(tmp_path_factory: pytest.TempPathFactory, _root: None) -> Iterator[Mounts]:
    mounts = Mounts(tmp_path_factory.mktemp("mounts"))
    try:
        yield mounts
    finally:
        mounts.close()


@pytest.fixture(scope="session")
def plain(mounts: Mounts, base: Path, stand_ins: list[Path]) -> Path:
    """A root with everything but our package, as `changes` over the base."""
    root = mounts.root(base)
    mounts.install(root, stand_ins)
    mounts.run(f"echo '{DRIVER_RULE}' >{root}/tree/etc/udev/rules.d/80-zz-driver.rules")
    return root / "changes"


@pytest.fixture(scope="session")
def installed(mounts: Mounts, base: Path, plain: Path, built: Path) -> Path:
    """The same with our package, installed by apt together with what it depends on."""
    root = mounts.root(base, plain)
    mounts.install(root, [built])
    return root / "changes"


@pytest.fixture(scope="session")
def disks(
    mounts: Mounts, base: Path, plain: Path, installed: Path, built: Path, core_agent: Path
) -> Callable[[Kind], Path]:
    """New roots with both packages, by the order in which they were installed, and with NetworkManager or not."""
    layers: dict[tuple[bool, bool], tuple[Path, ...]] = {}

    def layer(ours_first: bool, networkmanager: bool) -> tuple[Path, ...]:
        if (ours_first, networkmanager) not in layers:
            below: tuple[Path, ...]
            if networkmanager:
                below = layer(ours_first, False)
                root = mounts.root(base, *below)
                command = f"chroot {root}/tree apt-get {' '.join(APT)} install network-manager"
                mounts.run(f"export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; {command}")
            else:
                below = (plain, installed) if ours_first else (plain,)
                root = mounts.root(base, *below)
                for package in (core_agent,) if ours_first else (core_agent, built):
                    mounts.install(root, [package])
            layers[ours_first, networkmanager] = (*below, root / "changes")
        return layers[ours_first, networkmanager]

    return lambda kind: mounts.root(base, *layer(kind.ours_first, kind.networkmanager))


@pytest.fixture(scope="module")
def boot(mounts: Mounts, base: Path) -> Iterator[Boot]:
    """Boot roots; they end with the module, and before another release has its turn."""
    with ExitStack() as stack:

        def start(
            root: Path, name: str, entries: dict[str, str], *, plugged: bool = True, flags: Sequence[str] = ()
        ) -> Machine:
            machine = Machine(mounts, root, name, entries, plugged=plugged, flags=flags)
            stack.callback(machine.close)
            return machine

        yield start
