# /// scenario
# description = "A directory of a file server that takes root for nobody: the user who may enter it can unveil it, root cannot."
# guests = ["debian"]
# seconds = 60
# ///

from exec2.agent import configure, wait_for_driver
from exec2.allocs import driver_errors, events, logs, run_job, stop_job, wait_for_groups
from exec2.guest import machine, subtest, t
from exec2.jobs import group, job, task

# NFS 4.2, server and client of the kernel. The server asks a daemon about clients, exports and file handles (nfsd(7)); here the
# answers are there before it asks. 9222: root_squash, insecure, no_subtree_check, fsid (exports(5)). 10 s: the least that a
# server waits after its start for clients of an earlier one.
SERVE = r"""
set -eu
modprobe nfsd; modprobe nfsv4
mountpoint -q /proc/fs/nfsd || mount -t nfsd none /proc/fs/nfsd
mkdir -p /srv/exported /srv/home
mount -t tmpfs -o mode=0755 none /srv/exported
later=$(($(date +%s) + 100000))
echo "nfsd 127.0.0.1 $later here" > /proc/net/rpc/auth.unix.ip/channel
echo "here /srv/exported $later 9222 65534 65534 0" > /proc/net/rpc/nfsd.export/channel
echo "here 1 \\x00000000 $later /srv/exported" > /proc/net/rpc/nfsd.fh/channel
echo 10 > /proc/fs/nfsd/nfsv4gracetime
echo 10 > /proc/fs/nfsd/nfsv4leasetime
echo "-2 -3 +4.2" > /proc/fs/nfsd/versions
echo "tcp 2049" > /proc/fs/nfsd/portlist
echo 2 > /proc/fs/nfsd/threads
mount -i -t nfs4 -o vers=4.2,sec=sys,addr=127.0.0.1,clientaddr=127.0.0.1 127.0.0.1:/ /srv/home
install -d -o alice -m 0700 /srv/exported/alice /srv/exported/alice/data
install -o alice -m 0600 /dev/null /srv/exported/alice/data/file
echo "alice's" > /srv/exported/alice/data/file
"""
HOME = "/srv/home/alice"
DATA = f"{HOME}/data"
# What the task can do with the file, with a new one beside it, and with the directory above.
LOOK = f"cat {DATA}/file; echo x 2>/dev/null > {DATA}/$NOMAD_GROUP_NAME && echo created; [ -z \"$(ls {HOME})\" ] || echo listed; pwd"
READ, ALL = ["alice's"], ["alice's", "created", "listed"]
NO_PERMISSION = "Permission denied (the task's user has no permission to search a directory of the path)"


def of(user, *unveil, **options):
    return task("t", "sh", "-c", LOOK, unveil=unveil, extra=f'user = "{user}"', cpu=100, memory=16, **options)


wait_for_driver()
machine.succeed(SERVE)
machine.fail(f"ls {HOME}")
t.assertEqual(machine.succeed(f"setpriv --reuid=alice --regid=alice --clear-groups cat {DATA}/file"), "alice's\n")

for root in "private", "host":
    # In a root of its own the way to what was unveiled can be listed.
    way = ["listed"] if root == "private" else []
    allowed = {
        "whole": (of("alice", f"rwc:{HOME}"), ALL),
        "below": (of("alice", f"rwc:{DATA}"), [*READ, "created", *way]),
        "file": (of("alice", f"r:{DATA}/file"), [*READ, *way]),
        "start": (of("alice", f"r:{DATA}", work_dir=DATA), [*READ, *way]),
        "nothing": (of("alice"), []),
    }
    denied = {
        "other": of("bob", f"r:{DATA}"),
        "file-of-other": of("bob", f"r:{DATA}/file"),
        "root": of("root", f"r:{DATA}"),
        "start-of-other": of("bob", work_dir=DATA),
    }
    configure(root=root, unveil_by_task=True)

    with subtest(f"root = {root}: the user who may enter it can unveil it, parts of it, and start there"):
        run_job(job("allowed", *(group(name, text) for name, (text, _) in allowed.items())))
        for name, alloc in wait_for_groups("allowed", dict.fromkeys(allowed, "complete")).items():
            *seen, where = logs(alloc).splitlines()
            t.assertEqual((seen, where == DATA), (allowed[name][1], name == "start"), name)
        t.assertEqual(machine.succeed("ls /srv/exported/alice/data").split(), ["below", "file", "whole"])
        machine.succeed("cd /srv/exported/alice/data && rm below whole")
        stop_job("allowed")

    with subtest(f"root = {root}: another user cannot, and root cannot"):
        run_job(job("denied", *(group(name, text) for name, text in denied.items())))
        for name, alloc in wait_for_groups("denied", dict.fromkeys(denied, "failed")).items():
            reason = "Permission denied" if name == "start-of-other" else NO_PERMISSION
            t.assertTrue(driver_errors(alloc), alloc)
            t.assertTrue(all(reason in error for error in driver_errors(alloc)), driver_errors(alloc))
            t.assertFalse(events(alloc, "Started"))
        stop_job("denied")
