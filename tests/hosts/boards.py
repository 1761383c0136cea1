"""Devices that are played: SSH servers of this process, each with a disk of its own, real keys, shells and SFTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# What stands for vitdeploy on a device: it notes its words, and prints the file `answer`.
PLAYED = """\
#!/bin/sh
[ "$1" = --version ] && { echo "vitdeploy 9.9.9"; exit 0; }
printf '%s\\n' "$@" > asked
echo x >> times
cat answer; exit $(cat code)
"""
VERIFIED = {
    "passed": True,
    "runtime": {"backend": "onnxruntime", "version": "1.2.3", "device": "CPU"},
    "failures": [],
    "parity": {"outputs": [{"name": "logits", "snr_db": 64.25, "passed": True}], "failures": []},
}


class Board:
    """One device; `root` is all of its disk and the home of its user."""

    def __init__(self, root: Path, key: Path) -> None:
        self.root, self.key = root, key
        self.port = 0
        self.dies_when_asked = self.is_full = self.dies_while_copying = self.has_no_room = False
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        (root / "bin").mkdir(parents=True)
        self.install(PLAYED)
        self.answers(VERIFIED)

    def install(self, script: str) -> None:
        path = self.root / "bin/vitdeploy"
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def install_vitdeploy(self) -> None:
        """The one that is tested, in the same Python."""
        paths = shlex.quote(os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)]))
        command = f'exec env PYTHONPATH={paths} XDG_CACHE_HOME=cache {shlex.quote(sys.executable)} -m vitdeploy "$@"'
        self.install(f"#!/bin/sh\n{command}\n")

    def answers(self, answer: Mapping[str, Any] | str, code: int = 0) -> None:
        (self.root / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
        (self.root / "code").write_text(str(code))

    @property
    def asked(self) -> list[str]:
        """The words that vitdeploy was called with last."""
        return (self.root / "asked").read_text().splitlines()

    @property
    def times(self) -> int:
        """How often it was called."""
        path = self.root / "times"
        return len(path.read_text().split()) if path.exists() else 0

    @property
    def bundles(self) -> list[str]:
        """What lies where bundles are put."""
        folder = self.root / ".cache/vitdeploy/fleet"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    @property
    def known(self) -> str:
        """Its line of known_hosts."""
        return f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode().strip()}\n"

    async def listen(self, *, has_sftp: bool) -> asyncssh.SSHAcceptor:
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self.host_key],
            authorized_client_keys=str(self.key) + ".pub",
            process_factory=self._run,
            sftp_factory=(lambda channel: _Disk(self, channel)) if has_sftp else None,
            encoding=None,
        )
        self.port = server.get_port()
        return server

    async def _run(self, process: Any) -> None:
        started = await asyncio.create_subprocess_shell(
            process.command,
            cwd=self.root,
            env={"PATH": f"{self.root}/bin:/usr/bin:/bin", "HOME": str(self.root), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            output, errors = await started.communicate()
        except asyncio.CancelledError:
            os.killpg(started.pid, signal.SIGKILL)
            await started.communicate()
            raise
        if self.dies_when_asked and "--version" not in process.command:
            process.stdout.write(output[: len(output) // 2])
            process.channel.get_connection().abort()
            return
        with contextlib.suppress(OSError):  # the other side is gone
            process.stdout.write(output)
            process.stderr.write(errors)
            process.exit(started.returncode)


class _Disk(asyncssh.SFTPServer):
    """The disk of a board, which shows nothing else of this machine."""

    def __init__(self, board: Board, channel: Any) -> None:
        super().__init__(channel, chroot=str(board.root))
        self._board = board

    def write(self, file_obj: Any, offset: int, data: bytes) -> int:
        if self._board.is_full and offset + len(data) > 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self._board.dies_while_copying:
            self.channel.get_connection().abort()
        return super().write(file_obj, offset, data)

    def statvfs(self, path: bytes) -> Any:
        found = list(super().statvfs(path))
        if self._board.has_no_room:
            found[3:5] = [0, 0]  # free blocks
        return os.statvfs_result(found)


class Lab:
    """The devices, and the home folder of who asks them."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.folder, self._loop = folder, loop
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self.key = self.home / ".ssh/id_ed25519"
        self.new_key(self.key)
        self.boards: dict[str, Board] = {}

    def new_key(self, path: Path, kind: str = "ssh-ed25519") -> None:
        """A key in two files, of which only the first one's owner may log in."""
        key = asyncssh.generate_private_key(kind)
        key.write_private_key(str(path))
        key.write_public_key(f"{path}.pub")

    def board(self, name: str, *, has_sftp: bool = True) -> Board:
        """One more device, whose host key is known."""
        board = self.boards[name] = Board(self.folder / "boards" / name, self.key)
        asyncio.run_coroutine_threadsafe(board.listen(has_sftp=has_sftp), self._loop).result()
        self.know(board.known)
        return board

    def know(self, line: str) -> None:
        with (self.home / ".ssh/known_hosts").open("a") as file:
            file.write(line)

    def hosts(self, text: str = "", *, more: str = "") -> Path:
        """The file of hosts: all boards, with `text` below each."""
        path = self.folder / "fleet.toml"
        tables = (
            f'[hosts.{name}]\naddress = "127.0.0.1"\nport = {board.port}\n{text}\n'
            for name, board in self.boards.items()
        )
        path.write_text("\n".join([*tables, more]))
        return path


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A lab whose servers run in a thread of their own until the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    made = Lab(folder, loop)
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(_end(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _end() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
