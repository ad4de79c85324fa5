"""Processes that begin where `import torch, torchvision, numba` ended: forks of one that imported them once.

Hundreds of scripts of this suite need a process of their own, and would spend most of it on importing the same
packages. `Warm.run` takes a command line as Python does and gives what `subprocess.run` does. Nothing of this package
is imported before the fork, nor what reads the environment when it is imported; whoever checks imports, start-up or a
compiler that is told by the environment wants a process from scratch.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("numpy", "numba", "PIL.Image", "torch", "torch.utils.data", "torchvision")


class Warm:
    """A client of the server at an address, which is started by the first that asks, and again if it is gone."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self.server: subprocess.Popen[bytes] | None = None

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """`python arguments`: a script's path or `-c` and its text, then what it is given."""
        asked = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
        with self.connection() as line, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            line.settimeout(timeout)
            socket.send_fds(line, [b"?"], [out.fileno(), err.fileno()])
            line.sendall(json.dumps(asked).encode() + b"\n")
            with line.makefile() as answers:
                child = int(answers.readline())
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(child, signal.SIGKILL)
                    raise
            out.seek(0), err.seek(0)
            return subprocess.CompletedProcess(asked["arguments"], code, out.read(), err.read())

    def connection(self) -> socket.socket:
        """A line to the server; starts it where none answers."""
        with self.address.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            line = self.connected()
            if line is None:
                self.address.unlink(missing_ok=True)
                self.server = subprocess.Popen([sys.executable, __file__, str(self.address)], stdin=subprocess.PIPE)
            while line is None:
                assert self.server is not None and self.server.poll() is None, "the warm server ended"
                time.sleep(0.05)
                line = self.connected()
            return line

    def connected(self) -> socket.socket | None:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.connect(str(self.address))
        except OSError:
            line.close()
            return None
        return line

    def close(self) -> None:
        """End the server, if it is this client's; scripts that it began go on."""
        if self.server is not None and self.server.stdin is not None:
            self.server.stdin.close()
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:  # a fork of this process that still lives holds stdin open
                self.server.terminate()
                self.server.wait()


def serve(address: str) -> dict[str, Any]:
    """Fork for each request until stdin ends; returns in the forks alone, with what was asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(64)  # who asks meanwhile waits
        for package in PACKAGES:
            with contextlib.suppress(ImportError):
                importlib.import_module(package)
        gc.freeze()
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if 0 in ready:  # whoever is connected is served still
                Path(address).unlink(missing_ok=True)
                listener.setblocking(False)
            try:
                line, _ = listener.accept()
            except BlockingIOError:
                sys.exit()
            if os.fork() == 0:
                listener.close()
                return answered(line)
            line.close()


def answered(line: socket.socket) -> dict[str, Any]:
    """In a fork: fork what was asked, and tell how it ended."""
    line.setblocking(True)
    _, files, _, _ = socket.recv_fds(line, 1, 2)
    with line.makefile() as told:
        asked: dict[str, Any] = json.loads(told.readline())
    child = os.fork()
    if child:
        line.sendall(f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):  # whoever asked may be gone
            line.sendall(f"{code}\n".encode())
        os._exit(0)
    line.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate([nothing, *files]):
        os.dup2(file, number)
        os.close(file)
    return asked


def become(asked: dict[str, Any]) -> None:
    """Run the script as the main module of this process."""
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    name, *given = asked["arguments"]
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    if name == "-c":
        code, *given = given
        sys.path[0], path = "", "<string>"
    else:
        path = main.__file__ = name
        code, sys.path[0] = Path(path).read_text(), str(Path(path).parent)
    sys.path[1:1] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = [name, *given]
    sys.warnoptions[:] = ["ignore"]
    warnings.simplefilter("ignore")
    exec(compile(code, path, "exec", dont_inherit=True), main.__dict__)


if __name__ == "__main__":
    KEPT = sys.modules["__main__"]  # whose functions run
    become(serve(sys.argv[1]))
