# /// scenario
# description = "The benchmark of docs/performance.md; `make bench` puts its program and further plugins into the guest."
# nomad = "none"
# guests = ["debian"]
# memory_mib = 8192
# timeout_s = 7200
# ///

import os
import shlex
from pathlib import Path

from exec2.guest import machine, subtest, t, write

FOLDER = "/srv/bench"
OUT = "/var/tmp/bench"
TIMEOUT_S = 7000

plugins = {"nomad-driver-exec2": "/usr/bin/nomad-driver-exec2"}
listed = machine.execute(f"ls {FOLDER}/plugins")[1].splitlines()
plugins |= {name: f"{FOLDER}/plugins/{name}" for name in listed if name.strip()}

with subtest("benchmark"):
    arguments = ["-out", OUT, *(f"-plugin={label}={path}" for label, path in plugins.items())]
    more = os.environ.get("EXEC2_BENCH_ARGS", "")
    # bubblewrap is the host's.
    write("/srv/bench/run", f"export PATH={FOLDER}/bin:$PATH\nexec {FOLDER}/bench {shlex.join(arguments)} {more} 2>&1\n")
    status, output = machine.execute("sh /srv/bench/run", timeout=TIMEOUT_S)
    print(output)

with subtest("results"):
    folder = Path(os.environ.get("EXEC2_BENCH_OUT", "target/bench"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in machine.succeed(f"ls {OUT}").split():
        (folder / name).write_text(machine.succeed(f"cat {OUT}/{name}"), encoding="utf-8")
    t.assertEqual(status, 0, output)
