"""The command line and the sequence of a run: choose scenarios, build what is missing, run them, report."""

import argparse
import code
import functools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import kernels, payload, qemu, scenario, snapshot
from .assets import Assets, KernelImage
from .console import progress, result
from .driver import Driver, Outcome
from .errors import MachineError, RunnerError
from .host import cache_dir, debian_mirror
from .machine import Machine
from .report import Report
from .scenario import Scenario
from .snapshot import Snapshots
from .transcript import Transcript

KEPT_LOG_FOLDERS = 10


class Run(NamedTuple):
    """One scenario on one kernel."""

    scenario: Scenario
    kernel: KernelImage
    lsm_off: bool
    agent: str  # "pluginhost", "nomad" or "none"

    @property
    def boot(self) -> tuple[KernelImage, bool, str, int]:
        """What the boot of a guest depends on."""
        return self.kernel, self.lsm_off, self.agent, self.scenario.memory_mib

    @property
    def label(self) -> str:
        version = ".".join(map(str, kernels.version_tuple(self.kernel.version)))
        name = self.kernel.label if self.kernel.label == version else f"{self.kernel.label}={version}"
        return name + (" lsm=off" if self.lsm_off else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nixos-tests/run", description="Runs scenarios in virtual machines with chosen kernels.",
                                     epilog="Variables: NOMAD_BIN, EXEC2_VM_ACCEL=kvm|tcg, EXEC2_DEBIAN_MIRROR, XDG_CACHE_HOME. "
                                            "See nixos-tests/README.md.")  # fmt: skip
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="names, patterns or files; all if none is given")
    parser.add_argument("--kernel", default=kernels.DEFAULT_LABEL, metavar="LIST",
                        help="5.10,6.1,6.12,sid, the version that sid has, or all (default %(default)s)")  # fmt: skip
    parser.add_argument("--lsm-off", action="store_true", help="boot with Landlock left out of lsm=; runs scenarios with lsm = off or any")
    parser.add_argument("--nomad", choices=("auto", "pluginhost", "real", "both"), default="auto",
                        help="who loads the plugin; auto: the pluginhost, and real Nomad as well if NOMAD_BIN or PATH has one")  # fmt: skip
    parser.add_argument("--plugin", metavar="PATH", help="this plugin binary instead of a build of this checkout")
    parser.add_argument("--pluginhost", metavar="PATH", help="this pluginhost instead of a build of tests/pluginhost")
    parser.add_argument("--payload", metavar="DIR", help="a folder to put over the guest's root")
    parser.add_argument("--across", action="store_true", help="of the chosen scenarios only those whose result depends on the kernel")
    parser.add_argument("--list", action="store_true", help="list the chosen scenarios and what they are for")
    parser.add_argument("--table", action="store_true", help="print the scenarios as the table of nixos-tests/README.md")
    parser.add_argument("--build", action="store_true", help="build what the chosen kernels need, and run nothing")
    parser.add_argument("--update", action="store_true", help="look for newer kernel packages")
    parser.add_argument("--interactive", action="store_true", help="boot one machine and open a Python prompt with the scenario's globals")
    parser.add_argument("--shell", action="store_true", help="boot one machine and open a root shell in it")
    parser.add_argument("--no-snapshots", action="store_true", help="boot every guest instead of resuming snapshots")
    parser.add_argument("--keep", action="store_true", help="keep the disks of each guest in the log folder")
    parser.add_argument("--timeout", type=float, metavar="S", help="for each scenario, boot included (default: what its head says)")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help=f"guests at the same time, each with {qemu.CPUS} CPUs (default: as many as the host has CPUs for)")  # fmt: skip
    parser.add_argument("--logs", metavar="DIR", help="default target/vm-logs/TIME")
    parser.add_argument("--mirror", metavar="URL", help="the Debian mirror")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return Session(options).main()
    except RunnerError as error:
        print(f"nixos-tests/run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nixos-tests/run: interrupted", file=sys.stderr)
        return 130


class Session:
    """One call of the runner."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._live: set[Machine] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self.payloads: dict[str, Path] = {}
        self.snapshots: Snapshots | None = None
        self._sharing: Counter[str] = Counter()  # how many scenarios start from a snapshot

    def main(self) -> int:
        options = self.options
        if options.table:
            result(scenario.table().rstrip())
            return 0
        chosen = [item for item in scenario.choose(options.scenarios) if item.across or not options.across]
        if not chosen:
            raise RunnerError("--across: the result of no chosen scenario depends on the kernel")
        if options.list:
            for item in chosen:
                result(f"{item.name:28} kernels {item.kernels:16} lsm {item.lsm:4} nomad {item.nomad:11} {item.description}")
            return 0
        self.cache = cache_dir()
        assets = Assets(self.cache, debian_mirror(options.mirror))
        self.tools = assets.tools()
        images, broken = self._kernels(assets)
        self.root = assets.root(self.tools, scenario.packages("debian"))
        if options.build:
            for label, reason in broken.items():
                print(f"nixos-tests/run: kernel {label}: {reason}", file=sys.stderr)
            return 1 if broken else 0
        interactive = options.shell or options.interactive
        if interactive and not images:
            raise RunnerError(next(iter(broken.values())))
        report = Report()
        plan = [] if interactive else self._plan(chosen, images, broken, report)
        if interactive or plan:
            self.logs = self._log_folder()
            scratch = Path(tempfile.mkdtemp(prefix="payload-", dir=self.logs))
            try:
                needs = {name for run in plan for name in run.scenario.payload}
                self._payloads(scratch, {run.agent for run in plan} or set(self._agents(chosen[0].nomad)[:1] or ["none"]), needs)
                self.accel = qemu.accelerator(self.tools, images[0], self.cache)
                if self.accel == "tcg" and not options.no_snapshots:  # under KVM a boot takes no longer
                    self.snapshots = Snapshots(assets)
                    self._sharing.update(self._snapshot_name(*run.boot) for run in plan if run.scenario.shares_boot)
                if interactive:
                    return self._interactive(images[0], chosen[0])
                self._run_all(plan, report)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            progress(f"logs: {self.logs}")
        return report.finish()

    # -- what to run --------------------------------------------------------------------------------------------------

    def _kernels(self, assets: Assets) -> tuple[list[KernelImage], dict[str, str]]:
        """The kernels that could be built, and the errors of the others."""
        images, broken = [], {}
        for kernel, wanted in kernels.choose(self.options.kernel):
            try:
                images.append(assets.kernel(kernel, self.tools, wanted, self.options.update))
            except RunnerError as error:
                broken[wanted or kernel.label] = str(error)
        return images, broken

    def _agents(self, nomad: str) -> list[str]:
        """Who loads the plugin for a scenario with this `nomad` in its head; empty if it cannot run here."""
        if nomad == "none":
            return ["none"]
        choice = self.options.nomad
        if choice == "auto":
            choice = "both" if payload.real_nomad() else "pluginhost"
        agents = {"pluginhost": ["pluginhost"], "real": ["nomad"], "both": ["pluginhost", "nomad"]}[choice]
        only = {"real": "nomad", "pluginhost": "pluginhost"}.get(nomad)
        return [agent for agent in agents if only in (None, agent)]

    def _plan(self, chosen: list[Scenario], images: list[KernelImage], broken: dict[str, str], report: Report) -> list[Run]:
        plan = []
        for label, reason in broken.items():
            for item in chosen:
                if not item.kernel_mismatch(label) if label != "sid" else True:
                    report.failed(label, item.name, "", 0.0, f"no kernel {label}: {reason}")
        for image in images:
            for item in chosen:
                lsm_off = item.lsm == "off" or self.options.lsm_off
                label = Run(item, image, lsm_off, "").label
                mismatch = item.kernel_mismatch(image.version)
                if not mismatch and self.options.lsm_off and item.lsm == "on":
                    mismatch = "for kernels with Landlock on"
                if mismatch:
                    report.not_applicable(label, item.name, mismatch)
                    continue
                if "packages" in item.payload and not self.options.payload:
                    report.failed(label, item.name, "", 0.0, "needs the packages in the guest; run make test-vm, or write --payload DIR")
                    continue
                agents = self._agents(item.nomad)
                if not agents:
                    hint = "set NOMAD_BIN" if item.nomad == "real" else "--nomad"
                    report.skipped(label, item.name, f"needs nomad = {item.nomad}, which this run does not have ({hint})")
                plan += [Run(item, image, lsm_off, agent) for agent in agents]
        return plan

    # -- what it needs ------------------------------------------------------------------------------------------------

    def _log_folder(self) -> Path:
        if self.options.logs:
            folder = Path(self.options.logs).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        base = payload.PROJECT / "target" / "vm-logs"
        base.mkdir(parents=True, exist_ok=True)
        folder = base / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        folder.mkdir()
        for old in sorted(path for path in base.iterdir() if path.is_dir())[:-KEPT_LOG_FOLDERS]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def _payloads(self, scratch: Path, agents: "set[str]", needs: "set[str]") -> None:
        """One image for each agent. A scenario without an agent uses any of them, with the unit masked."""
        plugin = payload.build_plugin(self.options.plugin)
        wanted = sorted(agents - {"none"}) or self._agents("both")[:1]
        needs_host = self.options.nomad != "real" or "pluginhost" in needs
        host = payload.build_pluginhost(self.options.pluginhost) if needs_host else None
        unit_tests = payload.build_unit_tests() if "unit-tests" in needs else None
        attack = payload.build_attack() if "attack" in needs else None
        for agent in wanted:
            binary = payload.real_nomad() if agent == "nomad" else host
            if binary is None:
                raise RunnerError("--nomad real needs a nomad; set NOMAD_BIN, or put it on PATH")
            extra = Path(self.options.payload) if self.options.payload else None
            tree, image = scratch / agent, scratch / f"{agent}.erofs"
            payload.assemble(tree, plugin, binary, host, unit_tests, attack, extra)
            payload.make_image(self.tools, tree, image)
            shutil.rmtree(tree)
            self.payloads[agent] = image
        if "none" in agents:
            self.payloads["none"] = self.payloads[wanted[0]]

    # -- running ------------------------------------------------------------------------------------------------------

    def _command(self, kernel: KernelImage, lsm_off: bool, agent: str, memory_mib: int, disks: qemu.Disks) -> list[str]:
        extra = "systemd.mask=nomad.service" if agent == "none" else ""
        return qemu.guest_arguments(self.tools, self.accel, kernel, disks, memory_mib, lsm_off, extra)

    def _machine(self, run: Run, folder: Path, transcript: Transcript, timeout: float) -> Machine:
        """A machine with an empty disk, in place of an earlier one in the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / snapshot.DISK
        for old in (state, folder / snapshot.CONSOLE):
            old.unlink(missing_ok=True)
        payload.make_state_disk(self.tools, state, qemu.STATE_DISK_GIB)
        command = self._command(*run.boot, qemu.Disks(self.root, self.payloads[run.agent], state))
        machine = Machine("machine", command, folder, transcript, time.monotonic() + timeout, run.kernel.version)
        with self._lock:
            if self._stopping:
                raise KeyboardInterrupt
            self._live.add(machine)
        return machine

    @functools.cache  # noqa: B019  (there is one session)
    def _snapshot_name(self, kernel: KernelImage, lsm_off: bool, agent: str, memory_mib: int) -> str:
        placeholders = qemu.Disks(Path("root"), Path("payload"), Path("state"))
        return snapshot.name(kernel, [self.root, self.tools.tree], self.payloads[agent], self._command(kernel, lsm_off, agent, memory_mib, placeholders))

    def _resumed(self, run: Run, folder: Path, transcript: Transcript) -> Machine | None:
        """A machine resumed from a snapshot; None if this one has to boot."""
        if self.snapshots is None or not run.scenario.shares_boot:
            return None
        name = self._snapshot_name(*run.boot)
        found = self.snapshots.find(name)
        if found is None and self._sharing[name] > 1:
            found = self.snapshots.take(name, functools.partial(self._machine, run))
        if found is None:
            return None
        machine = self._machine(run, folder, transcript, self._timeout(run))
        try:
            found.resume(machine)
        except (MachineError, RunnerError, OSError) as error:
            machine.kill()
            transcript.event(f"not resumed, and booted instead: {error}")
            return None
        return machine

    def _timeout(self, run: Run) -> float:
        return self.options.timeout or run.scenario.timeout_s

    def _one(self, run: Run) -> tuple[Outcome, str]:
        name = f"{run.label}-{run.scenario.name}-{run.agent}".replace(" ", "-").replace("=", "-")
        folder = self.logs / name
        folder.mkdir(parents=True, exist_ok=True)
        transcript = Transcript(folder / "driver.log")
        machine = self._resumed(run, folder, transcript) or self._machine(run, folder, transcript, self._timeout(run))
        try:
            outcome = Driver([machine], transcript, folder).run(run.scenario)
        finally:
            machine.kill()
            transcript.close()
            with self._lock:
                self._live.discard(machine)
            if not self.options.keep:
                (folder / snapshot.DISK).unlink(missing_ok=True)
        detail = "" if outcome.passed else f"\nconsole, last lines:\n{machine.console_tail()}\nlogs: {folder}"
        return outcome, detail

    def _run_all(self, plan: list[Run], report: Report) -> None:
        jobs = self.options.jobs or max(1, (os.cpu_count() or 1) // qemu.CPUS)
        progress(f"{len(plan)} to run, {jobs} at a time, {'KVM' if self.accel == 'kvm' else 'emulated (TCG)'}")

        def task(run: Run) -> None:
            if self._stopping:
                return
            outcome, detail = self._one(run)
            if not self._stopping:
                report.finished(run.label, run.scenario.name, run.agent, outcome, detail)

        pool = ThreadPoolExecutor(max_workers=jobs)
        futures = [pool.submit(task, run) for run in plan]
        try:
            for future in futures:
                future.result()
        except BaseException:
            self._stopping = True
            for future in futures:
                future.cancel()
            with self._lock:
                live = list(self._live)
            for machine in live:
                machine.terminate()
            raise
        finally:
            pool.shutdown(wait=True)

    def _interactive(self, kernel: KernelImage, chosen: Scenario) -> int:
        agent = sorted(self.payloads)[0]
        run = Run(chosen, kernel, self.options.lsm_off or chosen.lsm == "off", agent)
        folder = self.logs / "interactive"
        folder.mkdir(parents=True, exist_ok=True)
        transcript = Transcript(folder / "driver.log", echo=None if self.options.shell else progress)
        machine = self._machine(run, folder, transcript, float("inf"))
        driver = Driver([machine], transcript, folder)
        try:
            progress(f"booting {kernel.version} with {agent} as the agent")
            if self.options.shell:
                machine.shell_interact()
            else:
                names = driver.interactive_globals()
                machine.connect()
                names["test_script"] = lambda: exec(compile(chosen.path.read_text(), str(chosen.path), "exec"), names)
                code.interact(f"`machine` is up; test_script() runs {chosen.name}; Ctrl-D ends it.", local=names, exitmsg="")
        finally:
            driver.stop()
            transcript.close()
        return 0
