# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules, and forwarding, which is on only while they are in.

Apart from the rest of the provider's half, because the boot waits for them in every qube, and most give network to
nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from .core import mtu, nftables, provider
from .core.provider import ProviderSettings
from .core.record import Loaded, Provided, checksum
from .core.values import IPV4, IPV6, Tunable
from .errors import FileError
from .paths import Paths
from .system import nft, services, tunables
from .system.owned import Ledger
from .system.systemd import WARNING, log
from .transactions import MISSING, Transactions, seen
from .work import Work

RULES = "base rules"
FORWARDING = {IPV4: ("ipv4", "ip_forward"), IPV6: ("ipv6", "conf", "all", "forwarding")}


class Rules:
    """The base rules and forwarding of a qube.

    Args:
        paths: where its files are.
        transactions: of this process.
    """

    def __init__(self, paths: Paths, transactions: Transactions | None = None) -> None:
        self._paths, self._nft = paths, transactions or Transactions()
        self._told = False  # that the kernel has no IPv6

    def begin(self, untrusted_entries: Mapping[str, bytes], ledger: Ledger, dry_run: bool) -> Work:
        """What has to be in force before anything else: the rules; and off with what is not wanted any more.

        Args:
            untrusted_entries: all of QubesDB below the provider's prefixes.
            ledger: the owned record.
            dry_run: only say what is to do.
        """
        settings = self._possible(provider.parse_provider(untrusted_entries), dry_run)
        active = settings.active and services.provides(self._paths.flags)
        work = Work(settings, active, self._wants_ipv6(settings, active, ledger), ledger, dry_run)
        work.mtu, work.untrusted_entries = mtu.common(untrusted_entries), untrusted_entries
        work.attempt(partial(self._close, work))
        work.attempt(partial(self._load, work))
        if not work.ruled and not dry_run:
            work.attempt(partial(_nothing_without_rules, work))
        return work

    def _possible(self, settings: ProviderSettings, dry_run: bool) -> ProviderSettings:
        """Without what the kernel does not have: IPv4 is set up all the same (behaviour B54, #5110)."""
        if not (settings.active and settings.serves(IPV6)) or _has_ipv6():
            self._told = False
            return settings
        if not self._told and not dry_run:
            self._told = True
            log(WARNING, "IPv6 is switched off in the kernel: the qubes behind this one have IPv4 only")
        return settings._replace(gateway6=None, held=settings.held - {"ipv6"}, refuse6=False)

    def _close(self, work: Work) -> None:
        wanted = work.families
        if work.provided.offloading and (not wanted or work.provided.forwarding - wanted):
            work.attempt(partial(self.end_offload, work))
        for family in sorted(work.provided.forwarding - wanted):
            if _forwards(family):
                work.do(str(Tunable(FORWARDING[family], "0")), partial(tunables.write, FORWARDING[family], "0"))
            if not work.dry_run:
                work.save(work.provided._replace(forwarding=work.provided.forwarding - {family}))

    def end_offload(self, work: Work, why: str = "") -> None:
        """What is offloaded passes by the rules and by the switch of forwarding: it ends before either goes.

        Args:
            work: the pass.
            why: for `status`.

        Raises:
            NftError: it goes on.
        """
        if work.dry_run:
            return
        if work.provided.offloading:
            self._nft.run(_ending(work))
        work.save(work.provided._replace(offload=why))

    def forward(self, work: Work) -> None:
        """Only when the rules are in, those for the virtual DNS too: an error before leaves forwarding as it is."""
        if not (work.ruled or work.planned) or not (work.provided.names.text or work.dry_run):
            return
        for family in sorted(work.families):
            if _forwards(family):
                continue
            if not work.dry_run:
                work.save(work.provided._replace(forwarding=work.provided.forwarding | {family}))
            work.do(str(Tunable(FORWARDING[family], "1")), partial(tunables.write, FORWARDING[family], "1"))

    # --- what the command line asks ----------------------------------------------------------------------------

    def load(self, untrusted_entries: Mapping[str, bytes] | None) -> tuple[str, ...]:
        """The base rules, before any network.

        Args:
            untrusted_entries: of QubesDB; None when it does not answer: rules that are there then stay as they are, and
                where there are none IPv6 is closed.

        Raises:
            GuestnetError: they are not in.
        """
        with Ledger(self._paths.run) as ledger:
            if untrusted_entries is None:
                work = Work(ProviderSettings(), False, False, ledger, dry_run=False)
                if seen(nftables.CHAINS) == MISSING:
                    self._load(work)
            else:
                work = self.begin(untrusted_entries, ledger, dry_run=False)
                work.raise_first()
                if work.active:
                    self._protect(work)
            work.raise_first()
            return tuple(work.done)

    def _protect(self, work: Work) -> None:
        from . import downstream  # only in a provider
        from .system import vifs

        downstream.bring(work, self._nft, vifs.Folder(self._paths.run).all(), downstream.present(work))

    def unload(self) -> tuple[str, ...]:
        """Forwarding off, and only then the rules out. Sets and users' chains go with them."""
        from .core.flowtable import END

        done = self.close()
        with Ledger(self._paths.run) as ledger:
            nft.run(END + nftables.unload())
            ledger.save(ledger.record._replace(provided=Provided(closed=True)))
        return (*done, "nft -f: tables ip qubes and ip6 qubes deleted")

    def close(self) -> tuple[str, ...]:
        """No forwarding until `reopen`: what is forwarded by us ends, in a provider whoever switched it on."""
        with Ledger(self._paths.run) as ledger:
            work = Work(ProviderSettings(), False, False, ledger, dry_run=False)
            forwarding = frozenset(FORWARDING) if services.provides(self._paths.flags) else work.provided.forwarding
            work.save(work.provided._replace(closed=True, forwarding=forwarding))
            self._close(work)
            work.raise_first()
            return tuple(work.done)

    def reopen(self) -> None:
        """The next pass forwards again."""
        with Ledger(self._paths.run) as ledger:
            ledger.save(ledger.record._replace(provided=ledger.record.provided._replace(closed=False)))

    # --- what is in force --------------------------------------------------------------------------------------

    def _wants_ipv6(self, settings: ProviderSettings, active: bool, ledger: Ledger) -> bool:
        """Whether the qubes have IPv6; what is held stays as it is in force."""
        if active and "ipv6" in settings.held:
            return ledger.record.provided.rules.text == checksum(nftables.base(ipv6=True).encode())
        return active and settings.gateway6 is not None

    def _load(self, work: Work) -> None:
        """The base rules, loaded unless those that are there are ours."""
        there = work.provided.rules
        text = nftables.base(ipv6=work.ipv6, refuse6=work.active and _refuses6(work.settings, there))
        wanted = checksum(text.encode())
        if there.text == wanted and self._nft.settled(RULES):
            work.ruled = True
            return
        generation = nft.generation()
        if there.text != wanted or there.seen != seen(nftables.CHAINS):
            work.reloaded = True
            # In the same transaction, because not a packet is to pass by the new rules on the way of the old ones, and
            # nobody is to speak for a qube that is not there yet.
            text = _ending(work) + text + nftables.downstream(work.settings.connected if work.active else (), ())
            work.do("nft -f: base rules of the tables ip qubes and ip6 qubes", partial(self._nft.run, text))
            if work.dry_run:
                work.planned = True
                return
            generation = nft.generation()
            loaded, names = Loaded(wanted, seen(nftables.CHAINS)), work.provided.names
            # What redirects the virtual DNS addresses may have gone with the rest.
            still = names.seen == seen(nftables.DNS_CHAINS)
            names = names if still else Loaded()
            work.save(work.provided._replace(rules=loaded, names=names, offload="", connected=""))
        self._nft.found_right(RULES, generation)
        work.ruled = True


def _refuses6(settings: ProviderSettings, there: Loaded) -> bool:
    """Whether IPv6 of the qubes is refused; what is held stays as it is in force."""
    held = "ipv6" in settings.held
    return settings.refuse6 or (held and there.text == checksum(nftables.base(ipv6=False, refuse6=True).encode()))


def _ending(work: Work) -> str:
    """What ends the offload that there may be, as a part of a transaction."""
    if not work.provided.offloading:
        return ""
    from .core.flowtable import END  # few have any

    return END


def _has_ipv6() -> bool:
    try:
        return tunables.read(("ipv6", "conf", "all", "disable_ipv6")) == "0"
    except FileError:
        return False  # what is not known is as good as off


def forwarded() -> frozenset[int]:
    """Families that the kernel forwards now."""
    return frozenset(family for family in FORWARDING if _forwards(family))


def _forwards(family: int) -> bool:
    return tunables.read(FORWARDING[family]) == "1"


def _nothing_without_rules(work: Work) -> None:
    """Somebody took the rules away, and they cannot be loaded: no rules, no forwarding."""
    if work.provided.forwarding and _missing():
        if work.provided.offloading:
            work.attempt(partial(nft.run, _ending(work)))
        for family in sorted(work.provided.forwarding):
            work.attempt(partial(tunables.write, FORWARDING[family], "0"))


def _missing() -> bool:
    try:
        return seen(nftables.CHAINS) == MISSING
    except nft.NftError:  # the program that cannot load them cannot list them either; the kernel says what is there
        return not nft.present()
