# /// scenario
# description = "A job submitted to a server runs on a client, and its task survives a restart of the client's agent."
# ///
# The machines are in cluster.nix.

import json

from exec2.guest import Machine, named, start_all, subtest, t

server: Machine = named("server")
client: Machine = named("client")
start_all()
server.wait_for_unit("nomad.service")
client.wait_for_unit("nomad.service")
ADDRESS = "export NOMAD_ADDR=http://$(ip -4 -o address show dev eth1 | awk '{print $4}' | cut -d/ -f1):4646;"


def nomad(arguments):
    return server.succeed(f"{ADDRESS} nomad {arguments}")


def allocs(job):
    return json.loads(nomad(f"job allocs -json {job}"))


with subtest("the client is ready and the driver healthy"):
    server.wait_until_succeeds(f"{ADDRESS} nomad node status -json | jq -e '.[] | select(.Status == \"ready\") | .Drivers.exec2.Healthy'", timeout=300)

with subtest("the job runs on the client"):
    nomad("job run /etc/exec2-examples/http.nomad.hcl")
    alloc = allocs("http")[-1]
    t.assertEqual((alloc["ClientStatus"], alloc["NodeName"]), ("running", "client"))
    server.wait_until_succeeds("curl -sS --fail --max-time 10 http://client:8181/", timeout=120)

with subtest("the task survives a restart of its agent"):
    pid = client.succeed(f"cat /sys/fs/cgroup/nomad.slice/*/{alloc['ID']}.*.scope/cgroup.procs").strip()
    client.succeed("systemctl restart nomad.service")
    client.wait_for_unit("nomad.service")
    server.wait_until_succeeds(f"{ADDRESS} nomad node status -json | jq -e '.[] | select(.Status == \"ready\")'", timeout=300)
    t.assertEqual(client.succeed(f"cat /sys/fs/cgroup/nomad.slice/*/{alloc['ID']}.*.scope/cgroup.procs").strip(), pid)
    server.succeed("curl -sS --fail --max-time 10 http://client:8181/")

with subtest("stopping it leaves nothing on the client"):
    nomad("job stop -purge http")
    client.wait_until_succeeds(f"! ls -d /sys/fs/cgroup/nomad.slice/*/{alloc['ID']}.*.scope", timeout=60)
    server.fail("curl -sS --max-time 10 http://client:8181/")
