# /// scenario
# description = "Which name servers, hosts and host name a task has: dns of the job, the host's, replaced loopback stubs."
# guests = ["debian"]
# seconds = 196
# ///
# Four servers answer every name below "example." with an address that tells which of them was asked. Each lookup that has to
# succeed has one beside it that has to fail. Nomad 2.0.6 fails all allocations with the mode "none" before it asks the driver.

import json
import shlex
from typing import Any

from exec2.agent import PLUGIN_NAME, configure, new_plugin, nomad, stand_in, wait_for_driver
from exec2.allocs import driver_errors, logs, messages, reported, run_job, stop_job, wait_for_alloc, wait_for_groups, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, machine, pgrep, poll, subtest, t, write
from exec2.jobs import group, job, task

# The servers, and what each answers.
STUB, UPSTREAM, NEW, OF_JOB = "127.0.0.53", "10.99.0.1", "10.99.0.2", "10.99.0.3"
ANSWERS = {STUB: "203.0.113.53", UPSTREAM: "203.0.113.1", NEW: "203.0.113.2", OF_JOB: "203.0.113.3"}
RESOLVED = "/run/systemd/resolve"
NO_SERVER = "DNS: the task's network namespace cannot reach the host's name servers"

# Python. A name server: "example." has an address, nothing else exists.
SERVER = """
import socket, struct, sys
address, answer = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
while True:
    asked, client = server.recvfrom(512)
    end, labels = 12, []
    while asked[end]:
        labels.append(asked[end + 1:end + 1 + asked[end]].decode().lower())
        end += 1 + asked[end]
    kind = struct.unpack(">H", asked[end + 1:end + 3])[0]
    known = labels[-1:] == ["example"]
    records = b"" if kind != 1 or not known else b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\0\\0\\4" + socket.inet_aton(answer)
    head = asked[:2] + struct.pack(">HHHHH", 0x8180 if known else 0x8183, 1, 1 if records else 0, 0, 0)
    server.sendto(head + asked[12:end + 5] + records, client)
"""

# Shell. What a task sees, and what it cannot do.
LOOK = """
echo "file: $(grep -v '^#' /etc/resolv.conf | tr '\\n' ';')"
for name in web.example web; do
  echo "$name: $(getent ahostsv4 $name | awk '{ print $1; exit }')"
done
for path in /etc/resolv.conf /etc/hosts /etc/hostname /.task/resolv.conf; do
  for way in "echo x >>" "rm" "cp /etc/group"; do
    sh -c "$way $path" 2> /dev/null && echo "$way $path was possible"
  done
done
echo "hostname: $(hostname)"
echo end
"""
# Prints the answer whenever it changes.
WATCH = """
import socket, time
last = None
while True:
    try:
        now = socket.getaddrinfo("web.example", None, socket.AF_INET, socket.SOCK_DGRAM)[0][4][0]
    except OSError as error:
        now = "no answer"
    if now != last:
        print("answer:", now, flush=True)
        last = now
    time.sleep(0.2)
"""


def network(mode, **dns):
    """A network block."""
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in dns.items())
    return f"network {{\nmode = {json.dumps(mode)}\n{f'dns {{{chr(10)}{lines}}}' if dns else ''}\n}}"


def looks(name, **networks):
    """What tasks in these networks see, by the names of their groups."""
    run_job(job(name, *(group(key, task("t", "sh", "-c", LOOK, cpu=200, memory=32), extra=extra) for key, extra in networks.items())))
    found: dict[str, dict[str, Any]] = {}
    for key, alloc in wait_for_groups(name, dict.fromkeys(networks, "complete")).items():
        wait_for_log(alloc, "end\n")
        lines = logs(alloc).splitlines()
        t.assertEqual([line for line in lines if line.endswith("was possible")], [], key)
        seen = dict(line.split(": ", 1) for line in lines if ": " in line)
        found[key] = {line.split(":")[0]: seen.get(line.split(":")[0], "") for line in lines if ":" in line}
        found[key]["events"] = [message for message in messages(alloc) if message.startswith("DNS:")]
    stop_job(name)
    return found


def resolv_conf(path, *lines):
    """Replaces the file as most programs do."""
    write(f"{path}.new", "".join(f"{line}\n" for line in lines))
    machine.succeed(f"chmod 644 {path}.new; mv {path}.new {path}")


def asked(seen):
    """The server that a task asked."""
    return {answer: server for server, answer in ANSWERS.items()}.get(seen["web.example"])


wait_for_driver()
machine.succeed(
    "cp -p /etc/resolv.conf /root/resolv.conf.before; cp -p /etc/nsswitch.conf /root/nsswitch.conf.before",
    "sed -i 's/^hosts:.*/hosts: files dns/' /etc/nsswitch.conf",
    "ip link add exec2-dns type dummy; ip link set exec2-dns up",
    *(f"ip addr add {address}/32 dev exec2-dns" for address in (UPSTREAM, NEW, OF_JOB)),
)
for number, (address, answer) in enumerate(ANSWERS.items()):
    machine.succeed(f"systemd-run --unit=dns{number} python3 -c {shlex.quote(SERVER)} {address} {answer}")
    machine.wait_until_succeeds(f"ss -lun | grep -F '{address}:53 '", timeout=CLEANUP_TIMEOUT_S)

with subtest("the host's servers, those of the job, and upstream servers in place of a loopback stub"):
    machine.succeed(f"mkdir -p {RESOLVED}")
    resolv_conf(f"{RESOLVED}/resolv.conf", f"nameserver {UPSTREAM}", "search upstream.example")
    resolv_conf("/etc/resolv.conf", "# a stub", f"nameserver {STUB}", "options edns0 trust-ad", "search example")
    found = looks(
        "dns",
        host=network("host"),
        hostservers=network("host", servers=[OF_JOB]),
        bridge=network("bridge"),
        servers=network("bridge", servers=[OF_JOB]),
        searches=network("bridge", searches=["example", "corp.example"]),
        options=network("bridge", options=["timeout:2"]),
        all=network("bridge", servers=[OF_JOB, NEW], searches=["."], options=["rotate"]),
        **({"none": network("none", servers=[OF_JOB])} if stand_in() else {}),
    )
    wanted = {"host": STUB, "hostservers": OF_JOB, "bridge": UPSTREAM, "servers": OF_JOB, "searches": UPSTREAM, "options": UPSTREAM, "none": None}
    t.assertIn(asked(found["all"]), (OF_JOB, NEW))
    t.assertEqual({key: asked(seen) for key, seen in found.items() if key != "all"}, {key: wanted[key] for key in found if key != "all"})
    t.assertEqual(found["host"]["file"], f"nameserver {STUB};options edns0 trust-ad;search example;")
    t.assertEqual(found["hostservers"]["file"], f"nameserver {OF_JOB};search example;options edns0;")
    t.assertEqual(found["bridge"]["file"], f"nameserver {UPSTREAM};search example;options edns0;")
    t.assertEqual(found["searches"]["file"], f"nameserver {UPSTREAM};search example corp.example;options edns0;")
    t.assertEqual(found["options"]["file"], f"nameserver {UPSTREAM};search example;options timeout:2;")
    t.assertEqual(found["all"]["file"], f"nameserver {OF_JOB};nameserver {NEW};search .;options rotate;")
    if stand_in():
        t.assertEqual(found["none"]["file"], f"nameserver {OF_JOB};search example;options edns0;")
    # The short name is found by the search list only.
    t.assertEqual(found["bridge"]["web"], ANSWERS[UPSTREAM])
    t.assertEqual(found["all"]["web"], "")
    t.assertEqual([seen["events"] for seen in found.values()], [[]] * len(found))

with subtest("a link to the stub of systemd-resolved, and a stub beside a server that can be reached"):
    resolv_conf(f"{RESOLVED}/stub-resolv.conf", f"nameserver {STUB}")
    machine.succeed("ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf.new; mv -T /etc/resolv.conf.new /etc/resolv.conf")
    poll("a bridge has the servers of upstream", lambda: asked(looks("dns", g=network("bridge"))["g"]) == UPSTREAM, ALLOC_TIMEOUT_S)
    t.assertEqual(asked(looks("dns", g=network("host"))["g"]), STUB)
    resolv_conf("/etc/resolv.conf", f"nameserver {STUB}", f"nameserver {NEW}")
    poll("the other one", lambda: asked(looks("dns", g=network("bridge"))["g"]) == NEW, ALLOC_TIMEOUT_S)

with subtest("without a server that can be reached, an event says so, but not without another network or with dns"):
    resolv_conf("/etc/resolv.conf", f"nameserver {STUB}")
    resolv_conf(f"{RESOLVED}/resolv.conf", "nameserver ::1")
    networks = {"bridge": network("bridge"), "host": network("host"), "servers": network("bridge", servers=[OF_JOB])}
    if stand_in():
        networks["none"] = network("none")
    found = poll("the event", lambda: (seen := looks("dns", **networks))["bridge"]["events"] and seen, ALLOC_TIMEOUT_S)
    t.assertIn(NO_SERVER, found["bridge"]["events"][0])
    wanted = {"bridge": None, "host": STUB, "none": None, "servers": OF_JOB}
    t.assertEqual({key: asked(seen) for key, seen in found.items()}, {key: wanted[key] for key in networks})
    t.assertEqual([found[key]["events"] for key in networks if key != "bridge"], [[]] * (len(networks) - 1))

with subtest("a running task follows the host's servers, with replaced stubs too, and a dns block does not"):
    resolv_conf(f"{RESOLVED}/resolv.conf", f"nameserver {UPSTREAM}")
    watching = {}
    for name, extra in {"follows": network("bridge"), "stays": network("bridge", servers=[OF_JOB])}.items():
        run_job(job(name, group("g", task("t", "python3", "-c", WATCH), extra=extra), kind="service"))
        watching[name] = wait_for_alloc(name, "running")
    wait_for_log(watching["follows"], f"answer: {ANSWERS[UPSTREAM]}")
    wait_for_log(watching["stays"], f"answer: {ANSWERS[OF_JOB]}")
    resolv_conf(f"{RESOLVED}/resolv.conf", f"nameserver {NEW}")
    wait_for_log(watching["follows"], f"answer: {ANSWERS[NEW]}")
    old = pgrep(PLUGIN_NAME)[0]
    machine.succeed(f"kill -KILL {old}")
    new_plugin(old)
    poll("it is recovered", lambda: reported(watching["follows"], "Recovered"), ALLOC_TIMEOUT_S)
    resolv_conf("/etc/resolv.conf", f"nameserver {UPSTREAM}")
    poll("it follows", lambda: logs(watching["follows"]).splitlines()[-1] == f"answer: {ANSWERS[UPSTREAM]}", ALLOC_TIMEOUT_S)
    t.assertEqual(logs(watching["stays"]).splitlines(), [f"answer: {ANSWERS[OF_JOB]}"])
    if not stand_in():
        for name, server in {"follows": UPSTREAM, "stays": OF_JOB}.items():
            shown = nomad(f"alloc exec -t=false -i=false {watching[name]['ID']} getent ahostsv4 web.example")
            t.assertEqual(shown.split()[0], ANSWERS[server], name)
    for name in watching:
        stop_job(name)

with subtest("an unveil of the host's /etc, or of the file alone, leaves the task its own servers"):
    cat = ("cat", "/etc/resolv.conf")
    run_job(job("both", group("g", task("t", *cat, unveil=["r:/etc"]), extra=network("bridge", servers=[OF_JOB]))))
    wait_for_log(wait_for_alloc("both", "complete"), f"nameserver {OF_JOB}")
    stop_job("both")
    run_job(job("one", group("g", task("t", *cat, unveil=["r:/etc/resolv.conf"]), extra=network("bridge", servers=[OF_JOB]))))
    wait_for_log(wait_for_alloc("one", "complete"), f"nameserver {OF_JOB}")
    stop_job("one")
    run_job(job("all", group("g", task("t", *cat, unveil=["r:/etc"]), extra=network("bridge"))))
    wait_for_log(wait_for_alloc("all", "complete"), f"nameserver {UPSTREAM}")
    stop_job("all")

if stand_in():
    with subtest("hosts and host name of the allocation, as Nomad sends them for a group with a Docker task"):
        machine.succeed("ip netns add exec2-names", "hostname exec2-host; echo 192.0.2.7 of-the-host >> /etc/hosts")
        isolation = {"mode": "GROUP", "path": "/var/run/netns/exec2-names"}
        names = {**isolation, "hostsConfig": {"hostname": "alloc-1", "address": "172.26.64.9"}}
        show = "hostname; cat /etc/hostname; getent hosts alloc-1; getent hosts of-the-host; (hostname other) 2> /dev/null || echo denied; exec sleep 600"
        seen = {}
        for name, spec in {"named": names, "unnamed": isolation}.items():
            path = f"/srv/dns/{name}.json"
            write(path, json.dumps({"config": {"command": "sh", "args": ["-c", show]}, "network_isolation_spec": spec, "cpu": 500, "memory": 64}))
            machine.succeed(f"pluginhost task start {path}")
            machine.wait_until_succeeds(f"pluginhost task logs {path} | grep denied", timeout=CLEANUP_TIMEOUT_S)
            seen[name] = machine.succeed(f"pluginhost task logs {path}").splitlines()
            session = json.loads(machine.succeed(f"pluginhost task exec {path} -- hostname"))
            t.assertEqual(session["stdout"].strip(), seen[name][0])
            machine.succeed(f"pluginhost task destroy -force {path}; pluginhost task cleanup {path}")
        named = [line.split() for line in seen["named"]]
        t.assertEqual(named, [["alloc-1"], ["alloc-1"], ["172.26.64.9", "alloc-1"], ["192.0.2.7", "of-the-host"], ["denied"]])
        t.assertEqual(seen["unnamed"][0], "exec2-host")
        t.assertNotIn("alloc-1", "".join(seen["unnamed"]))
        t.assertEqual(machine.succeed("hostname").strip(), "exec2-host")
        machine.succeed("ip netns del exec2-names; pluginhost task plugin stop || :")

with subtest('with root = "host", dns is refused, and other tasks run'):
    configure(root="host", unveil_by_task=True)
    run_job(job("refused", group("g", task("t", "true"), extra=network("host", servers=[OF_JOB]))))
    t.assertIn('with root = "host" a task has the host\'s /etc/resolv.conf', driver_errors(wait_for_alloc("refused", "failed"))[0])
    stop_job("refused")
    t.assertEqual(asked(looks("dns", g=network("host"))["g"]), UPSTREAM)

machine.succeed("mv /root/resolv.conf.before /etc/resolv.conf; mv /root/nsswitch.conf.before /etc/nsswitch.conf; ip link del exec2-dns")
