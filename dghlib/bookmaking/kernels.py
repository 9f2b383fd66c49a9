"""The Python processes in which notebooks are executed.

A new interpreter spends most of a short page's time on imports. Here a process that has imported torch and the plans
is copied for every notebook (`multiprocessing`'s fork server), so each notebook still has a process of its own. macOS's
libraries do not survive such a copy; there every notebook starts a new interpreter.
"""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.context import ForkServerProcess
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from dghlib.experiments.run import RESULTS_VARIABLE, results_dir

COPIES = sys.platform == "linux"
# Imported before the copies are made.
PRELOADED = ["ipykernel.kernelapp", "dghlib.bookmaking.holdings", "dghlib.showing.figures", "dghlib.showing.tables"]


class OwnInterpreter(AsyncKernelManager):
    """Starts kernels with this interpreter, whatever others are registered, and with this folder of results."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        # ipykernel warns at every start that it talks to this process unencrypted, and shows a traceback of its own
        # when Ctrl-C closes the connection. Output of cells is still shown.
        options = ["--log-level=CRITICAL", "--IPKernelApp.matplotlib=inline", "--InlineBackend.figure_formats=svg"]
        environment = {RESULTS_VARIABLE: str(results_dir().absolute())}
        return KernelSpec(argv=[*command, *options], env=environment, display_name="Python 3", language="python")

    async def _async_pre_start_kernel(self, **settings: Any) -> tuple[list[str], dict[str, Any]]:
        if COPIES:
            self.provisioner = _Copied(kernel_id="", kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**settings)


class _Copied(LocalProvisioner):
    """Starts a kernel as a copy of the fork server's process."""

    async def launch_kernel(self, cmd: list[str], **settings: Any) -> KernelConnectionInfo:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        # Without the interpreter and the module, which the copy has already loaded.
        copy = context.Process(target=_kernel, args=(cmd[3:], settings["env"], settings["cwd"]), daemon=True)
        copy.start()
        handle: Any = _Handle(copy)
        self.process, self.pid = handle, copy.pid
        return self.connection_info


class _Handle:
    """The part of `subprocess.Popen` that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, process: ForkServerProcess):
        self.process = process

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.process.pid  # it was started
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _end_with_parent() -> None:
    """End this process when the one that executes the notebook has gone."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _kernel(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Be a kernel, in a copied process."""
    import torch
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()  # Ctrl-C is for the process that executes the notebook
    os.environ.update(environment)
    os.environ.pop("JPY_PARENT_PID", None)  # is not the parent here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(folder)
    if threads := os.environ.get("OMP_NUM_THREADS"):  # read once, when torch was imported
        torch.set_num_threads(int(threads))
    launch_new_instance(argv=arguments)
