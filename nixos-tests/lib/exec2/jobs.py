"""The text of jobs, in HCL. Nomad replaces `${NAME}` in arguments, so scripts have to write `$NAME`."""

import json
from typing import Any

PRESTART = 'lifecycle { hook = "prestart" }'

# Python scripts of tasks: one waits for signals, one ignores SIGINT and has to be followed by another.
WAIT = "import signal, time\nprint('ready', flush=True)\nwhile True: signal.pause()"
IGNORE = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
# And one whose child uses more memory than any task here has; it needs `rw:/proc` to be the child that the kernel kills.
OOM_CHILD = """
import os
if os.fork() == 0:
    open("/proc/self/oom_score_adj", "w").write("1000")
    x = b"x" * (200 << 20)
    os._exit(0)
print("child ended with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def task(
    name: str, command: str, *args: str, cpu: int = 500, memory: int = 64, memory_max: int = 0, resources: str = "", extra: str = "", **config: Any
) -> str:
    """A task block: `config` has further options of the driver, `extra` is HCL beside them, `resources` in that block."""
    options = {"command": command, "args": list(args), **config}
    lines = "\n".join(f"      {option} = {json.dumps(value)}" for option, value in options.items())
    return f"""
  task {json.dumps(name)} {{
    driver = "exec2"
    config {{
{lines}
    }}
    resources {{
      cpu    = {cpu}
      memory = {memory}
      {f"memory_max = {memory_max}" if memory_max else ""}
      {resources}
    }}
    {extra}
  }}"""


def group(name: str, *tasks: str, attempts: int = 0, interval: str = "10m", delay: str = "1s", count: int = 1, extra: str = "") -> str:
    """A group that is never rescheduled, and restarted up to `attempts` times within `interval`, each after `delay`."""
    return f"""
 group {json.dumps(name)} {{
  count = {count}
  restart {{
    attempts = {attempts}
    interval = "{interval}"
    delay    = "{delay}"
    mode     = "fail"
  }}
  reschedule {{
    attempts  = 0
    unlimited = false
  }}
  {extra}
{"".join(tasks)}
 }}"""


def job(name: str, *groups: str, kind: str = "batch") -> str:
    return f'job {json.dumps(name)} {{\n type = "{kind}"\n{"".join(groups)}\n}}\n'


def python_job(name: str, script: str, cpu: int = 1000, memory: int = 32, unveil: str = "[]", options: str = "", kill_timeout: str = "2s",
               attempts: int = 0, delay: str = "1s") -> str:  # fmt: skip
    """A job of one group `g` and one task `t`, which runs the script."""
    text = f"""
  task "t" {{
    driver       = "exec2"
    kill_timeout = "{kill_timeout}"
    config {{
      command = "python3"
      args    = ["-c", <<-EOT
{script}
EOT
      ]
      unveil = {unveil}
      {options}
    }}
    resources {{
      cpu    = {cpu}
      memory = {memory}
    }}
  }}"""
    return job(name, group("g", text, attempts=attempts, delay=delay))
