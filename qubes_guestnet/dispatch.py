# SPDX-License-Identifier: GPL-2.0-or-later
"""The table from each kind of operation to its adapter, in parts that are imported separately.

Each adapter raises GuestnetError when its operation is refused.
"""

from __future__ import annotations

import errno
import os
import time

from .core.operations import TRANSACTION
from .errors import FileError, Vanished
from .system import files, procfs_sysctl

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from .core.firewall.consequences import CountHandled, ExportNames
    from .core.firewall.operations import Operation as FirewallOperation
    from .core.provider.rules_operations import PurgeUntranslated
    from .core.provider.vif_operations import RemoveElements
    from .core.shared_operations import UnitJob
    from .core.uplink.service_operations import PublishFile, StartHooks
    from .flow import Adapters
    from .provider.ruleset_generation import Transactions
    from .reconcile import Kernel
    from .system import vif_records
    from .system.nft.guard import Guard
    from .system.qubesdb.store import Store
    from .uplink.other_services import OtherServices


def of_uplink(kernel: Kernel, others: OtherServices | None) -> Adapters:
    """Return the adapters for links, addresses, neighbours, routes, resolv.conf, and the other services.

    Args:
        kernel: the adapter.
        others: the other services; None if nothing is planned for them.
    """
    table: Adapters = {"Op": kernel.apply, "PublishFile": _publish}
    return {**table, **(of_services(others) if others is not None else {})}


def _publish(op: PublishFile) -> None:
    """Publish a file. Raises Vanished if another program has replaced it meanwhile, so it is judged again (B124)."""
    from .core.dns import resolv_conf  # not at boot, nor for a vif

    if resolv_conf.may_be_truncated(op.over, op.data):
        _let_rest(op.path, resolv_conf.TRUNCATED_SECONDS)
    try:
        files.publish(op.path, op.data, over=op.over)
    except FileError as error:
        if error.errno == errno.ESTALE:
            raise Vanished(str(op), error.errno) from None
        raise


def _let_rest(path: str, seconds: float) -> None:
    """Wait until the last change of a file is some seconds old, and at most these seconds."""
    try:
        age = time.time() - os.stat(path).st_mtime
    except OSError:
        return  # `publish` reports the error
    time.sleep(min(max(seconds - age, 0.0), seconds))


def of_services(others: OtherServices) -> Adapters:
    """Return the adapters for the other services of the uplink."""
    from .system import networkmanager

    return {
        "ApplySysctl": lambda op: others.apply_sysctl(op.interface),
        "RewriteProfile": lambda op: networkmanager.rewrite(op.name, op.text),
        "PublishProfile": lambda op: networkmanager.publish(op.name, op.text),
        "LoadProfile": lambda op: networkmanager.load(op.name),
        "ActivateProfile": lambda op: networkmanager.activate(op.interface, op.uuid),
        "ReapplyProfile": lambda op: networkmanager.reapply(op.interface),
        "RemoveProfile": lambda op: networkmanager.remove(op.name, op.uuid),
        "StartHooks": _start,
        "SetLinkNames": lambda op: others.resolved.set(op),
        "RevertLinkNames": lambda op: others.resolved.revert(op),
    }


OF_FORWARDING: Adapters = {
    "CloseForwarding": lambda op: procfs_sysctl.write(op.tunable.path, op.tunable.value),
    "OpenForwarding": lambda op: procfs_sysctl.write(op.tunable.path, op.tunable.value),
}


def of_base_rules(transactions: Transactions) -> Adapters:
    """Return the adapters for the base rules of every qube, and for the steps after their loss."""
    return {
        **OF_FORWARDING,
        "LoadRules": lambda op: transactions.run(op.text),
        "UnloadRules": lambda op: transactions.run(op.text),
        "LoadRulesInParts": lambda op: _restore().load_in_parts(transactions.run, op),
        "PurgeUntranslated": _purge_untranslated,
        "UnitJob": _queue_job,
    }


def _restore() -> ModuleType:
    from .provider import user_rules  # where rules were lost

    return user_rules


def _purge_untranslated(op: PurgeUntranslated) -> None:
    from .system import conntrack

    conntrack.purge_untranslated(op.addresses)


def _queue_job(op: UnitJob) -> None:
    from .system import systemctl

    systemctl.queue_job(op.verb, op.unit)


def of_guard(guard: Guard, transactions: Transactions) -> Adapters:
    """Return the adapters for the guard of the resident agent."""
    return {
        "StandGuard": lambda _op: transactions.do(guard.stand),
        "LeaveGuard": lambda _op: transactions.do(guard.leave),
    }


def of_rules(transactions: Transactions) -> Adapters:
    """Return the adapters for a provider's nft rules, and the services that depend on them."""
    from .core.nft import flowtable, rules_text
    from .system import conntrack

    return {
        "ChangeDownstream": lambda op: transactions.run(op.text),
        "LoadRedirection": lambda op: transactions.run(op.text),
        "KeepForeignRedirection": lambda op: transactions.run(op.text),
        "PurgeConntrack": lambda op: conntrack.purge(op.addresses),
        "SetFirewallServers": lambda op: transactions.run(rules_text.firewall_servers(op.addresses)),
        "UnitJob": _queue_job,
        "LoadFlowtable": lambda op: transactions.run(flowtable.load(op.names, ipv6=op.ipv6)),
        "EndFlowtable": lambda _op: transactions.run(flowtable.END),
    }


def of_firewall(transactions: Transactions, store: Callable[[], Store]) -> Adapters:
    """Return the adapters for the firewall of client qubes.

    Args:
        transactions: transactions of this process.
        store: connects to QubesDB for writing.
    """
    from .core.firewall import operations as firewall
    from .system import conntrack

    def load(op: FirewallOperation) -> None:
        transactions.run(op.text)

    return {
        **dict.fromkeys((each.__name__ for each in firewall.ORDER), load),
        "EndConnections": lambda op: conntrack.end(op.entries),
        "ExportNames": lambda op: _export_names(op, store),
        "CountHandled": lambda op: _count_handled(op, store),
        TRANSACTION: lambda ops: transactions.begin(firewall.transaction(ops)),
    }


def _export_names(op: ExportNames, connect: Callable[[], Store]) -> None:
    store = connect()
    try:
        for export in op.exports:
            store.rm(export.folder)
            for path, value in export.entries:
                store.write(path, value)
    finally:
        store.close()


def _count_handled(op: CountHandled, connect: Callable[[], Store]) -> None:
    from .core.firewall.consequences import counted

    store = connect()
    try:
        for path in op.paths:
            store.write(path, counted(store.read(path)))
    finally:
        store.close()


def of_vifs(kernel: Kernel, records: vif_records.Folder, transactions: Transactions) -> Adapters:
    """Return the adapters for the vifs of a provider.

    Args:
        kernel: the adapter.
        records: records of the vifs.
        transactions: transactions of this process.
    """
    from .system import conntrack

    return {
        **dict.fromkeys(("CloseVif", "PrepareVif", "OpenVif"), lambda op: kernel.apply(op.op)),
        **dict.fromkeys(("WriteVifRecord", "MarkVifClosed", "KeepVifRecord"), lambda op: records.save(op.vif)),
        **dict.fromkeys(("SetLimits", "SetElement"), lambda op: transactions.run(op.text)),
        "RemoveElements": lambda op: _remove_elements(op, transactions),
        "RemoveVifRecord": lambda op: records.remove(op.name),
        "WriteTunable": lambda op: procfs_sysctl.write(op.tunable.path, op.tunable.value),
        "PurgeConntrack": lambda op: conntrack.purge(op.addresses),
        TRANSACTION: lambda ops: transactions.begin("".join(op.text for op in ops)),
    }


def _remove_elements(op: RemoveElements, transactions: Transactions) -> None:
    """Remove elements; ignore an error if all our tables are missing, because then the vif cannot send anyway."""
    from .system.nft import program as nft

    try:
        transactions.run(op.text)
    except nft.NftError:
        if any(nft.tables(transactions.families).values()):
            raise


def _start(op: StartHooks) -> None:
    from .core.hooks import LIMIT_SECONDS
    from .system import hooks  # once for each change, in providers

    hooks.start(op.paths, LIMIT_SECONDS)
