"""Flower's own simulation engine: a SuperLink in simulation mode, and Ray actors as devices.

``flwr run`` would start a detached SuperLink that outlives the run and is shared between users of a
machine. This one has its own port and folder, and ends with the run.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from fedsprig.errors import RunError

BUNDLE = Path(__file__).parent.parent / "flower_app"
START_SECONDS = 60
STOP_SECONDS = 20


def run_ray(*, fleet: Path, devices: int, server_config: Path, workers: int) -> None:
    """Run the two applications to the end; see :func:`fedsprig_sim.runtimes.run_apps`.

    Raises:
        RunError: Ray is not installed, or Flower's run failed; the message names the log.
    """
    if find_spec("ray") is None:
        raise RunError("Ray is not installed: pip install 'fedsprig[sim]', or --runtime in-process")
    log_path = server_config.with_name("flower.log")
    with tempfile.TemporaryDirectory(prefix="fedsprig-flower-") as folder:
        home = Path(folder)
        port = _free_port()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "sim"\n\n'
            f'[superlink.sim]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        # The bundle is packed where it lies: a copy keeps the installed package as it is.
        bundle = shutil.copytree(
            BUNDLE, home / "bundle", ignore=shutil.ignore_patterns("__pycache__")
        )
        environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        }
        with log_path.open("wb") as log:
            superlink = subprocess.Popen(
                [
                    *("flower-superlink", "--insecure", "--simulation"),
                    *("--host", "127.0.0.1", "--port", str(port)),
                    "--disable-runtime-dependency-installation",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                _wait_until_healthy(port, superlink, log_path)
                finished = subprocess.run(
                    [
                        *("flwr", "run", str(bundle), "sim", "--stream"),
                        "--federation-config",
                        f"num-supernodes={devices} client-resources-num-cpus=1 "
                        f"init-args-num-cpus={workers}",
                        "--run-config",
                        f'fleet="{fleet.resolve()}" server-config="{server_config.resolve()}"',
                    ],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    check=False,
                )
            finally:
                _stop(superlink)
    if finished.returncode:
        raise RunError(f"flwr run ended with code {finished.returncode}: see {log_path}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(port: int, superlink: subprocess.Popen[bytes], log_path: Path) -> None:
    ends = time.monotonic() + START_SECONDS
    while superlink.poll() is None and time.monotonic() < ends:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RunError(f"flower-superlink did not start: see {log_path}")


def _stop(superlink: subprocess.Popen[bytes]) -> None:
    """End the SuperLink and everything that it started (executor, ServerApp, Ray)."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(superlink.pid, sign)
        except ProcessLookupError:
            return
        try:
            superlink.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
