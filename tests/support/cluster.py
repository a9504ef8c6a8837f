"""A real SLURM on this machine: two nodes, accounting, and a partition whose jobs another one evicts. As root.

    python tests/support/cluster.py up      # make slurm-up: starts what does not run, prints what to export
    python tests/support/cluster.py down    # make slurm-down: stops what it has started, and removes its folder

Needs Debian's slurm-wlm, slurmdbd, mariadb-server and munge. Everything listens on loopback. Order matters: the cluster
is added to the accounting before slurmctld starts, which else leaves tables in which sacctmgr hangs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

ROOT = Path(os.environ.get("BENI_SLURM", "/tmp/beni-slurm"))
FIRST_PORT = 17400
NODES = 2
CPUS = 2
MEMORY_MIB = 8000
GRACE_S = 20
"""Seconds that an evicted job of partition ``low`` gets."""
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged")

SLURM_CONF = """\
ClusterName=beni
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort={controller}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmdSpoolDir={root}/spool/%n
StateSaveLocation={root}/state
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting}
AccountingStorageEnforce=associations,limits
MpiDefault=none
ReturnToService=2
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=20
SlurmctldTimeout=20
InactiveLimit=0
KillWait=10
MinJobAge=300
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory={memory}
PartitionName=low Nodes=ALL Default=YES MaxTime=1-0 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=now Nodes=ALL MaxTime=1-0 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL MaxTime=1-0 State=UP PriorityTier=10 PreemptMode=OFF
"""
DATABASE_CONF = """\
AuthType=auth/munge
DbdHost=localhost
DbdPort={accounting}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
GRANTS = "".join(
    f"create user if not exists slurm@'{host}' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'{host}'; "
    for host in ("localhost", "127.0.0.1")
)


STARTED: list[subprocess.Popen[bytes]] = []
"""Programs that this process has started; they outlive it."""


class NoCluster(Exception):
    """Why there can be none on this machine."""


def missing() -> list[str]:
    """What this machine lacks for a cluster, in words; empty where nothing is missing."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return lacking + (["root"] if os.geteuid() != 0 else [])


def up() -> Path:
    """Starts what does not run, and waits until both nodes take jobs.

    Returns:
        The file that ``SLURM_CONF`` is to name.

    Raises:
        NoCluster: when something is missing, or does not start.
    """
    if lacking := missing():
        raise NoCluster(f"no SLURM here: {', '.join(lacking)} missing; apt-get install slurm-wlm slurmdbd "
                        "mariadb-server munge, as root")  # fmt: skip
    for name in ("etc", "log", "run", "spool", "state"):
        (ROOT / name).mkdir(parents=True, exist_ok=True)
    config = _configure()
    os.environ["SLURM_CONF"] = str(config)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    _munge()
    _database()
    _accounting()
    _controller()
    for number in range(1, NODES + 1):
        start_node(f"n{number}")
    ready = ("sinfo", "-h", "-N", "-p", "low", "-t", "idle,mix,alloc")
    _wait("both nodes take jobs", lambda: _ask(*ready).count("\n") >= NODES)
    return config


def down() -> None:
    """Stops what runs, in the order in which it depends on each other, and removes the folder."""
    os.environ["SLURM_CONF"] = str(ROOT / "etc" / "slurm.conf")
    _ask("scancel", "--user=root")
    names = [f"slurmd.n{number}" for number in range(1, NODES + 1)] + ["slurmctld", "slurmdbd", "mariadb"]
    for name in names:
        _end(ROOT / "run" / f"{name}.pid")
    link = Path("/etc/slurm/slurm.conf")
    if link.is_symlink() and os.readlink(link) == str(ROOT / "etc" / "slurm.conf"):
        link.unlink()
    shutil.rmtree(ROOT, ignore_errors=True)


def start_node(name: str) -> None:
    """Starts the slurmd of a node, unless it runs."""
    (ROOT / "spool" / name).mkdir(exist_ok=True)
    if not _alive(ROOT / "run" / f"slurmd.{name}.pid"):
        _start("slurmd", "-N", name, "-f", os.environ["SLURM_CONF"])


def kill_node(name: str) -> None:
    """SIGKILL to the slurmd of a node; what it has started lives on, as on a machine whose slurmd crashes."""
    pid = ROOT / "run" / f"slurmd.{name}.pid"
    os.kill(int(pid.read_text()), signal.SIGKILL)
    _wait("the end of a killed process", lambda: not _alive(pid))
    pid.unlink()


def _configure() -> Path:
    values = {
        "root": ROOT,
        "nodes": NODES,
        "cpus": CPUS,
        "memory": MEMORY_MIB,
        "grace": GRACE_S,
        "first": FIRST_PORT + 1,
        "last": FIRST_PORT + NODES,
        "controller": FIRST_PORT + 90,
        "accounting": FIRST_PORT + 91,
        "database": FIRST_PORT + 92,
    }
    config, database = ROOT / "etc" / "slurm.conf", ROOT / "etc" / "slurmdbd.conf"
    config.write_text(SLURM_CONF.format(**values))
    database.write_text(DATABASE_CONF.format(**values))
    database.chmod(0o600)
    hosts = Path("/etc/hosts")
    known = {word for line in hosts.read_text().splitlines() for word in line.split("#")[0].split()[1:]}
    new = [f"127.0.0.1 n{number}\n" for number in range(1, NODES + 1) if f"n{number}" not in known]
    with hosts.open("a") as file:
        file.writelines(new)
    link = Path("/etc/slurm/slurm.conf")  # srun inside a job looks here, where a shell has not set SLURM_CONF
    link.parent.mkdir(exist_ok=True)
    if link.is_symlink() or not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(config)
    return config


def _munge() -> None:
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(folder).mkdir(exist_ok=True)
        Path(folder).chmod(0o755)
        shutil.chown(folder, "munge", "munge")
    key = Path("/etc/munge/munge.key")
    if not key.exists() or not key.stat().st_size:
        key.write_bytes(os.urandom(1024))
        shutil.chown(key, "munge", "munge")
        key.chmod(0o400)
    subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "munged --force"], capture_output=True)
    _wait("munge", lambda: subprocess.run(["munge", "-n"], capture_output=True).returncode == 0)


def _database() -> None:
    folder, pid = ROOT / "db", ROOT / "run" / "mariadb.pid"
    server = ["mariadb", "--no-defaults", "-uroot", "-S", str(folder / "s.sock"), "-e"]
    if not _alive(pid):
        if not (folder / "mysql").is_dir():
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, "mysql", "mysql")
            subprocess.run(
                ["mariadb-install-db", "--user=mysql", f"--datadir={folder}", "--skip-test-db"],
                check=True,
                capture_output=True,
            )
        process = _start(
            *("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={folder}", f"--socket={folder / 's.sock'}"),
            *(f"--pid-file={folder / 'm.pid'}", "--bind-address=127.0.0.1", f"--port={FIRST_PORT + 92}"),
            *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
        )
        pid.write_text(str(process.pid))
        _wait("MariaDB", lambda: subprocess.run([*server, "select 1"], capture_output=True).returncode == 0)
    subprocess.run([*server, f"create database if not exists slurm_acct_db; {GRANTS}"], check=True)


def _accounting() -> None:
    if not _alive(ROOT / "run" / "slurmdbd.pid"):
        _start("slurmdbd")
        _wait("slurmdbd", lambda: _listens(FIRST_PORT + 91))
    if "beni" not in _ask("sacctmgr", "-nP", "list", "cluster"):
        _ask("sacctmgr", "-i", "add", "cluster", "beni")


def _controller() -> None:
    if not _alive(ROOT / "run" / "slurmctld.pid"):
        _start("slurmctld", "-f", os.environ["SLURM_CONF"])
        _wait("slurmctld", lambda: "UP" in _ask("scontrol", "ping"))
    if "lab" not in _ask("sacctmgr", "-nP", "list", "account"):
        _ask("sacctmgr", "-i", "add", "account", "lab", "Description=lab", "Organization=lab")
        _ask("sacctmgr", "-i", "add", "user", "root", "Account=lab")


def _start(*command: str) -> subprocess.Popen[bytes]:
    name = Path(command[0]).name
    with (ROOT / "log" / f"{name}.out").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    STARTED.append(process)
    return process


def _ask(*command: str) -> str:
    """What a command prints; empty where it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _wait(what: str, there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise NoCluster(f"waited {seconds:.0f} s for: {what}; logs are in {ROOT / 'log'}")
        time.sleep(0.2)


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _alive(pid: Path) -> bool:
    try:
        return psutil.Process(int(pid.read_text())).status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return False


def _end(pid: Path) -> None:
    if not _alive(pid):
        return
    number = int(pid.read_text())
    os.kill(number, signal.SIGTERM)
    for _ in range(75):
        if not _alive(pid):
            break
        time.sleep(0.2)
    else:
        os.kill(number, signal.SIGKILL)
    pid.unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """0, or 1 and why there is no cluster."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("up", "down"))
    if parser.parse_args(arguments).command == "down":
        down()
        return 0
    try:
        print(f"export SLURM_CONF={up()}")
    except NoCluster as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
