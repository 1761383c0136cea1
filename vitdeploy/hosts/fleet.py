"""`vitdeploy fleet`: one command of vitdeploy on many devices, over SSH.

Slow and dead devices do not hold the others: each host is a task of its own, of which some run at once, and whatever
becomes of it is its outcome and no exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.errors import MissingDependencyError, UsageError
from vitdeploy.hosts.inventory import Host, read_hosts
from vitdeploy.hosts.live import TICK_SECONDS, Live
from vitdeploy.hosts.outcome import Asked, Outcome
from vitdeploy.hosts.records import Records
from vitdeploy.hosts.report import FleetReport
from vitdeploy.hosts.table_entry import write_entries
from vitdeploy.hosts.words import names_data, words_for

if TYPE_CHECKING:
    from vitdeploy.hosts.transfer import Parcel

VERBS = ("build", "verify", "benchmark", "validate")
PARALLEL = 8


@checked_arguments
def fleet(
    verb: str,
    bundle: str | Path | Bundle,
    hosts: str | Path,
    *,
    baseline: str | Path | Bundle | None = None,
    options: Sequence[str] = (),
    output: str | Path | None = None,
    only: Sequence[str] | None = None,
    parallel: int = PARALLEL,
    force: bool = False,
    device_table: str | Path | None = None,
) -> FleetReport:
    """Run one command of vitdeploy on many devices, each with its own vitdeploy, and gather what they answer.

    The bundle is copied to a device once. Whatever becomes of a host (no vitdeploy, a full disk, a lost connection, a
    failed gate) is its outcome in the report, and the others go on.

    Args:
        verb: `build`, `verify`, `benchmark` or `validate`.
        bundle: The bundle, or its folder.
        hosts: A TOML file with a table `[hosts.NAME]` for each device.
        baseline: FP32 bundle that `validate` compares with, which is copied too; None where the devices have PyTorch.
        options: More options of the command, as they are typed, such as `["--threads", "2"]`.
        output: Folder of the results, one JSON file for each host. Where it is there, hosts that passed when they were
            asked the same are not asked again.
        only: Names of the hosts to ask; None for all.
        parallel: Hosts that are asked at once.
        force: Whether to ask hosts again that passed.
        device_table: Folder to add a file to for each device that was benchmarked.

    Returns:
        The report, with an outcome for each host.

    Raises:
        UsageError: An argument, the file of hosts or the folder of results does not fit.
        BundleError: The bundle is damaged.
        MissingDependencyError: asyncssh is not installed.
    """
    _check(verb, options, parallel)
    _check_belongs(verb, baseline, device_table)
    if importlib.util.find_spec("asyncssh") is None:
        raise MissingDependencyError("asyncssh", needed_for="vitdeploy fleet", extra="fleet")
    from vitdeploy.hosts.transfer import Parcel

    chosen = read_hosts(Path(hosts), only)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    _check_data(verb, chosen, options, Path(hosts))
    parcel = Parcel.of(opened)
    other = None if baseline is None else Parcel.of(baseline if isinstance(baseline, Bundle) else Bundle.open(baseline))
    against = None if other is None else other.name
    parcels = [parcel] if other is None or other.name == parcel.name else [parcel, other]
    questions = {
        host: Asked(verb, opened.manifest_sha256, host.place, words_for(host, verb, parcel.name, against, options))
        for host in chosen
    }
    records = None if output is None else Records(Path(output), verb, opened.manifest_sha256)
    kept = {} if records is None or force else {host: records.kept(host.name, one) for host, one in questions.items()}
    known = {host: outcome for host, outcome in kept.items() if outcome is not None}
    left = {host: asked for host, asked in questions.items() if host not in known}
    title = f"{verb} of {opened.path.name}"
    outcomes = known | asyncio.run(_ask_all(left, parcels, parallel, records, title))
    in_order = tuple(outcomes[host] for host in chosen)
    entries = () if device_table is None else write_entries(Path(device_table), opened, in_order)
    return FleetReport(
        verb,
        str(opened.path),
        opened.manifest_sha256,
        str(hosts),
        in_order,
        None if output is None else str(output),
        tuple(map(str, entries)),
    )


async def _ask_all(
    left: dict[Host, Asked], parcels: Sequence[Parcel], parallel: int, records: Records | None, title: str
) -> dict[Host, Outcome]:
    """The outcomes of hosts, each written as soon as it is there."""
    from vitdeploy.hosts.device import ask

    free = asyncio.Semaphore(parallel)
    with Live(title, [host.name for host in left]) as live:

        async def one(host: Host, asked: Asked) -> tuple[Host, Outcome]:
            async with free:
                outcome = await ask(host, asked, parcels, lambda doing: live.note(host.name, doing))
            if records is not None:
                records.write(outcome)
            live.end(outcome)
            return host, outcome

        ticking = asyncio.create_task(_tick(live))
        tasks = [asyncio.create_task(one(host, asked)) for host, asked in left.items()]
        try:
            return dict(await asyncio.gather(*tasks))
        finally:
            for task in (ticking, *tasks):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(ticking, *tasks, return_exceptions=True)


async def _tick(live: Live) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        live.tick()


def _check(verb: str, options: Sequence[str], parallel: int) -> None:
    if verb not in VERBS:
        raise UsageError(f"a fleet cannot {verb!r}", why=f"there are {', '.join(VERBS)}", fix=" or ".join(VERBS))
    if parallel < 1:
        raise UsageError(f"{parallel} hosts cannot be asked at once", fix="--parallel 8")
    for option in options:
        if not option.isprintable():
            raise UsageError(f"an option is {option!r}", why="it cannot be typed on a device", fix="other options")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UsageError(
        "a fleet cannot be asked inside of a running event loop",
        why="it runs one of its own",
        fix="await asyncio.to_thread(vitdeploy.fleet, …)",
    )


def _check_belongs(verb: str, baseline: object, device_table: object) -> None:
    """UsageError for what is of another command."""
    if device_table is not None and verb != "benchmark":
        raise UsageError(f"{verb} measures nothing for a table of devices", fix="benchmark, or leave it out")
    if baseline is not None and verb != "validate":
        raise UsageError(
            f"{verb} has no bundle to compare with",
            why="validate has one; what benchmark compares with stands behind --",
            fix="validate, or leave it out",
        )


def _check_data(verb: str, hosts: Sequence[Host], options: Sequence[str], path: Path) -> None:
    """UsageError for a validation without images, which no host would understand."""
    missing = [host.name for host in hosts if host.data is None]
    if verb == "validate" and missing and not names_data(options):
        raise UsageError(
            f"{path} does not say where the images are on {', '.join(missing)}",
            why="validate reads them on the device",
            fix='data = "…" in [defaults] or below [hosts.NAME], or `-- --data PATH` at the end',
        )
