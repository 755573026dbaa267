# /// scenario
# description = "The distribution's programs work under the defaults, for a user without an entry or a home, as they do outside."
# kernels = ">= 6.12, < 6.13"
# seconds = 222
# packages.debian = [
#   "file", "fontconfig", "gcc", "git", "libc6-dev", "man-db", "nginx-light", "nodejs", "openssl", "perl", "php-cli",
#   "php-mbstring", "php-xml", "postgresql-client", "python3-venv", "redis-server", "ruby", "sqlite3", "wget",
# ]
# packages.nix = [
#   "file", "fontconfig", "gcc", "git", "man-db", "ncurses", "nginx", "nodejs", "openssl", "perl", "php", "postgresql",
#   "redis", "ruby", "sqlite", "wget",
# ]
# ///
# What it shows does not depend on the kernel.

import shlex

from exec2.agent import wait_for_driver
from exec2.allocs import logs, run_job, wait_for_alloc, wait_for_groups, wait_for_log
from exec2.cli import PLUGIN
from exec2.guest import data_dir, machine, subtest, t, write
from exec2.jobs import group, job, task

UID = 95000  # in no user database, as a dynamic user is
OUTSIDE = "/tmp/outside"
HOST = "--root host"

HELLO_C = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }'
MAIN_JAVA = "public static void main(String[] a) throws Exception"
HELLO_JAVA = f'public class Hello {{ {MAIN_JAVA} {{ javax.net.ssl.SSLContext.getDefault(); System.out.println("hello"); }} }}'
TEMPORARY_JAVA = f'public class Temporary {{ {MAIN_JAVA} {{ java.io.File.createTempFile("exec2", null).delete(); }} }}'
JAVA = "java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # an emulated CPU compiles slowly
NGINX = "events {} http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s; }"
# More than a pipe holds, so the shell needs a temporary file.
HERE_DOCUMENT = "bash -c 'eval \"wc -c <<end\n$(head -c 200000 /dev/zero | tr \"\\0\" x)\nend\"'"

# Output and status have to be those of the same script outside.
PROGRAMS = {
    "node": """node -e 'console.log(require("crypto").createHash("sha256").update("x").digest("hex"), require("tls").rootCertificates.length > 0)'""",
    "git": "git config --get exec2.scenario && git init -q r && ls r/.git/hooks && cd r &&"
    " git -c user.name=a -c user.email=a@b.c commit -q --allow-empty -m first && git log --format=%s",
    "php": "php -r 'echo implode(\" \", get_loaded_extensions()), \" \", php_ini_loaded_file(), \" \", mb_strlen(\"x\");'",
    "perl": "perl -MJSON::PP -MHTTP::Tiny -MFile::Find -MPod::Usage -MNet::Config -MPOSIX -e 'print encode_json([strftime(\"%Y\", gmtime 0)])'",
    "psql": "psql --version && pg_dump --version",
    "python": "python3 -X pycache_prefix=none -c 'import ssl, sqlite3, ctypes, uuid; print(ssl.create_default_context().cert_store_stats())'",
    "python -m venv": "python3 -m venv v && v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)' && v/bin/pip --version | cut -d' ' -f1,2",
    "java": f"echo {shlex.quote(HELLO_JAVA)} > Hello.java && {JAVA} Hello.java",
    "ruby": """ruby -rjson -ropenssl -e 'puts [OpenSSL::Digest::SHA256.hexdigest("x")].to_json'""",
    "nginx": f"echo {shlex.quote(NGINX)} > nginx.conf && nginx -t -q -e stderr -p $PWD -c nginx.conf -g 'pid pid;' && echo valid",
    "redis": "redis-server --port 0 --save '' --unixsocket $PWD/s > log & until redis-cli -s $PWD/s ping; do sleep 0.2; done 2> polls &&"
    " redis-cli -s $PWD/s set a 1 && redis-cli -s $PWD/s shutdown && wait",
    "gcc": f"echo {shlex.quote(HELLO_C)} > hello.c && gcc -o hello hello.c && ./hello",
    "openssl": "openssl version && openssl req -x509 -newkey ed25519 -nodes -keyout k -out c -subj /CN=x 2> progress && openssl x509 -in c -noout -subject",
    "a company's certificate authority": "openssl verify -no-CAfile -no-CAstore -CApath /etc/ssl/certs /srv/exec2/leaf.pem",
    "sqlite3": "sqlite3 x.db 'create table t(a); insert into t values(1); select * from t'",
    "bash": HERE_DOCUMENT,
    "file": 'file -bL --mime-type "$(command -v sh)"',
    "fontconfig": "fc-list : family | sort",
    # a link of the host's, to a folder that is listed anyway
    "man": "manpath | tr : '\\n' | grep -vx /usr/local/man",
    "wget": ": > rc && SYSTEM_WGETRC=$PWD/rc wget --version | head -1",
    "time zones, terminals, names": "TZ=Europe/Berlin date -d @0 +%H && tput -T xterm colors && getent services ssh && cat /etc/os-release",
    "programs of the administrator": "chroot --version | head -1",
}
# Only in a root of their own: with `root = "host"` there is nothing at these paths, or it is the host's.
OWN_ROOT = {
    "java, createTempFile": f"echo {shlex.quote(TEMPORARY_JAVA)} > Temporary.java && {JAVA} Temporary.java",
    "a socket in /tmp": """python3 -c 'import os, socket; socket.socket(socket.AF_UNIX).bind("/tmp/exec2.sock"); os.unlink("/tmp/exec2.sock")'""",
    "a here-document without TMPDIR": f"unset TMPDIR; {HERE_DOCUMENT}",
    "python, multiprocessing": "python3 -c 'import multiprocessing as m; m.Lock(); print(m.get_context(\"fork\").Pool(2).map(abs, [-1, 2]))'",
    "python, a pseudo-terminal": "python3 -c 'import pty; pty.openpty()'",
    "script, a command at a terminal": "script -qec 'test -t 0 && echo at a terminal' /dev/null",
    "wget, without a message": "wget --version 2>&1 | grep 'Permission denied' && exit 1 || exit 0",
}
# The same for a named user: (script, output).
NAMED = {
    "a user's name": ("whoami", "alice\n"),
    "git, without the user's configuration": ("git init -q r && echo made", "made\n"),
}
HIDDEN = "No such file"
# Denied on purpose: (script, a part of the message).
REFUSED = {
    "a user namespace": ("unshare -r true", "denied|not permitted"),
    "netlink protocols of the network's configuration": ("nft --version", "Netlink socket: Protocol not supported"),
    "a mount": ("mount -t tmpfs none $NOMAD_TASK_DIR", "denied|permi|superuser"),
    "the standard output of PID 1": ("echo x > /proc/1/fd/1", "denied"),
    "its own oom_score_adj": ("echo 500 > /proc/self/oom_score_adj", "denied"),
    "a key that everybody may read": ("cat /etc/ssl/private/exec2.key", HIDDEN),
    "passwords of a php-fpm pool": ("cat /etc/php/9.9/fpm/pool.d/www.conf", HIDDEN),
    "tokens of npm": ("cat /etc/npmrc", HIDDEN),
    "configuration below /usr/local": ("cat /usr/local/etc/app.conf", HIDDEN),
    "the host's users": ("getent passwd bob || getent passwd alice || grep -e alice -e bob /etc/passwd", "^$"),
}


def outside(script):
    """(status, output) of the script outside of a sandbox, as a user like that of a task."""
    return machine.execute(
        f"rm -rf {OUTSIDE} && install -d -m 700 -o {UID} -g {UID} {OUTSIDE} && cd {OUTSIDE} && HOME=/nonexistent TMPDIR={OUTSIDE}"
        f" setpriv --reuid {UID} --regid {UID} --clear-groups sh -c {shlex.quote(script)} 2>&1 < /dev/null"
    )


def inside(script, options=""):
    return machine.execute(f"{PLUGIN} run {options} -- sh -c {shlex.quote(script)} 2>&1 < /dev/null")


wait_for_driver()

with subtest("files of an operator"):
    write("/etc/gitconfig", "[exec2]\n\tscenario = yes\n")
    write("/home/alice/.gitconfig", "[init]\n\tdefaultBranch = main\n")
    write("/etc/wgetrc", "# an operator's\n")
    for path in ("/etc/ssl/private/exec2.key", "/etc/php/9.9/fpm/pool.d/www.conf", "/etc/npmrc", "/usr/local/etc/app.conf"):
        write(path, "secret\n")
        machine.succeed(f"d={path}; while d=$(dirname $d); [ $d != /etc ] && [ $d != /usr/local ]; do chmod 755 $d; done; chmod 644 {path}")
    # a certificate authority with the links of update-ca-certificates: from its hash to a name beside it, to the operator's file
    machine.succeed(
        "mkdir -p /srv/exec2 /usr/local/share/ca-certificates; cd /srv/exec2;"
        " openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out /usr/local/share/ca-certificates/exec2.crt -subj /CN=exec2-ca -days 3650 2>&1;"
        " openssl req -newkey ed25519 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf 2>&1;"
        " openssl x509 -req -in leaf.csr -CA /usr/local/share/ca-certificates/exec2.crt -CAkey ca.key -CAcreateserial -out leaf.pem -days 365 2>&1;"
        " chmod 644 /usr/local/share/ca-certificates/exec2.crt leaf.pem; mkdir -p /etc/ssl/certs;"
        " ln -s /usr/local/share/ca-certificates/exec2.crt /etc/ssl/certs/exec2.pem;"
        " ln -s exec2.pem /etc/ssl/certs/$(openssl x509 -noout -hash -in /usr/local/share/ca-certificates/exec2.crt).0"
    )
    # one program reads a file of the scenario
    LEAF = "--unveil r:/srv/exec2/leaf.pem"

for name, script in PROGRAMS.items():
    with subtest(name):
        status, output = outside(script)
        t.assertEqual(status, 0, output)
        t.assertEqual(inside(script, LEAF), (status, output))

for name, script in OWN_ROOT.items():
    with subtest(f"{name}, and not with the host's root"):
        status, output = outside(script)
        t.assertEqual(status, 0, output)
        t.assertEqual(inside(script), (status, output))
        t.assertNotEqual(inside(script, HOST)[0], 0)

for name, (script, output) in NAMED.items():
    with subtest(f"{name}, and not with the host's root"):
        t.assertEqual(inside(script, "--user alice"), (0, output))
        t.assertNotEqual(inside(script, f"{HOST} --user alice")[0], 0)

with subtest("the workarounds of the documentation"):
    t.assertEqual(inside("nft --version", "--cap-add net_admin"), outside("nft --version"))
    t.assertEqual(inside("GIT_CONFIG_GLOBAL=/dev/null git init -q r", f"{HOST} --user alice"), (0, ""))
    t.assertEqual(inside("git config --get init.defaultBranch", "--user alice --unveil r:/home/alice/.gitconfig"), (0, "main\n"))
    t.assertEqual(inside("cat /etc/npmrc", "--unveil r:/etc/npmrc"), (0, "secret\n"))

for name, (script, message) in REFUSED.items():
    with subtest(f"denied: {name}"):
        status, output = inside(script)
        t.assertNotEqual(status, 0, output)
        t.assertRegex(output, message)
        if message == HIDDEN:
            status, output = inside(script, HOST)
            t.assertNotEqual(status, 0, output)
            t.assertIn("denied", output)


# In fifths of a second: for what changes, and for what does not.
CHANGES, STAYS = 300, 15


def while_changed(path, change, options="", wait=CHANGES):
    """The output of a task that reads the file, and reads it again once the host has run `change` and the content is another."""
    go, out = "/usr/share/exec2-go", "/tmp/out"
    script = f"cat {path} && until [ -e {go} ]; do sleep 0.2; done; n=0; while [ $n -lt {wait} ] && [ \"$(cat {path} 2>&1)\" = first ]; do"
    script += f" n=$((n + 1)); sleep 0.2; done; cat {path}"
    command = f"{PLUGIN} run {options} -- sh -c {shlex.quote(script)} > {out} 2>&1 < /dev/null"
    machine.succeed(f"rm -f {go} {out}; echo first > {path}; chmod 644 {path}")
    machine.execute(f"{command} & pid=$!; until grep -q first {out}; do sleep 0.2; done; {change}; touch {go}; wait $pid")
    return machine.succeed(f"cat {out}").splitlines()


def replaced(path):
    return f"echo second > {path}.new; mv {path}.new {path}"


CHANGED, SAME = ["first", "second"], ["first", "first"]

with subtest("a file that is replaced: the files of /etc and those of an unveiled folder follow, an unveiled file stays what it was"):
    machine.succeed("mkdir -p /srv/exec2/conf /run/resolvconf; chmod 755 /srv/exec2/conf /run/resolvconf; cp -a /etc/resolv.conf /tmp/resolv.conf")
    app, conf, resolvconf = "/srv/exec2/conf/app", "/etc/resolv.conf", "/run/resolvconf/resolv.conf"
    for root in ("", HOST):
        t.assertEqual(while_changed(app, replaced(app), f"{root} --unveil r:/srv/exec2/conf"), CHANGED)
        t.assertEqual(while_changed(resolvconf, replaced(resolvconf), root), CHANGED)
    machine.succeed(f"rm {conf}")
    t.assertEqual(while_changed(conf, replaced(conf)), CHANGED)
    t.assertEqual(while_changed(conf, f"echo second > {conf}"), CHANGED)
    t.assertEqual(while_changed(app, replaced(app), f"--unveil r:{app}", STAYS), SAME)
    for path, options in ((app, f"--unveil r:{app}"), (conf, "")):
        output = while_changed(path, replaced(path), f"{HOST} {options}")
        t.assertEqual(output[0], "first")
        t.assertIn("denied", output[1])
    machine.succeed(f"cp -a --remove-destination /tmp/resolv.conf {conf}")

with subtest("a release link that is moved: followed through its folder; an unveil of the link stays the old release"):
    machine.succeed("mkdir -p /srv/exec2/app/1 /srv/exec2/app/2; echo second > /srv/exec2/app/2/page; chmod -R a+rX /srv/exec2/app")
    page, move = "/srv/exec2/app/current/page", "ln -sfn 2 /srv/exec2/app/current"
    back = "ln -sfn 1 /srv/exec2/app/current"
    for root in ("", HOST):
        machine.succeed(back)
        t.assertEqual(while_changed(page, move, f"{root} --unveil r:/srv/exec2/app"), CHANGED)
    machine.succeed(back)
    t.assertEqual(while_changed(page, move, "--unveil r:/srv/exec2/app/current", STAYS), SAME)
    machine.succeed(back)
    output = while_changed(page, move, f"{HOST} --unveil r:/srv/exec2/app/current")
    t.assertEqual(output[0], "first")
    t.assertIn("denied", output[1])

with subtest("a file is moved between directories only where it gains no right; in a root of its own it is copied"):
    machine.succeed("install -d -m 777 /srv/exec2/rwc /srv/exec2/rwxc")
    rename = """python3 -c 'import os, sys; open(sys.argv[1], "w"); os.rename(*sys.argv[1:])'"""
    both = "--unveil rwxc:/srv/exec2/rwxc --unveil rwc:/srv/exec2/rwc"

    def moved(source, target, root=""):
        return inside(f"{rename} /srv/exec2/{source} /srv/exec2/{target}", f"{root} {both}")

    t.assertEqual(moved("rwxc/loses", "rwc/loses", HOST), (0, ""))
    for output in (moved("rwc/gains", "rwxc/gains", HOST), moved("rwc/gains-own", "rwxc/gains-own"), moved("rwxc/loses-own", "rwc/loses-own")):
        t.assertIn("Invalid cross-device link", output[1])
    # mv copies then
    for root in ("", HOST):
        move = "f=copied-$(id -u); echo x > /srv/exec2/rwc/$f && mv /srv/exec2/rwc/$f /srv/exec2/rwxc/ && cat /srv/exec2/rwxc/$f"
        t.assertEqual(inside(move, f"{root} {both}"), (0, "x\n"))

with subtest("the same by a job"):
    names = ["node", "git", "php", "perl", "psql", "ruby", "nginx", "gcc", "openssl", "sqlite3", "bash"]
    script = "; ".join(f"(mkdir {name}; cd {name}; {PROGRAMS[name]})" for name in names)
    expected = outside(script)
    t.assertEqual(expected[0], 0, expected[1])
    run_job(job("programs", group("g", task("t", "sh", "-c", script, cpu=3000, memory=512))))
    alloc = wait_for_alloc("programs", "complete")
    last = expected[1].splitlines()[-1]
    t.assertEqual((wait_for_log(alloc, last), logs(alloc, stderr=True)), (expected[1], ""))

# Python. A socket by a path of the given length below TMPDIR, and by the same path relative to it.
LISTEN = """
import os, socket, sys
path = os.path.join(os.environ["TMPDIR"], "s")
path += "s" * (int(sys.argv[1]) - len(path))
if sys.argv[2] == "relative":
    os.chdir(os.environ["TMPDIR"])
    path = os.path.basename(path)
socket.socket(socket.AF_UNIX).bind(path)
"""


def secret(perms):
    """A task that reads a template in its secrets directory."""
    template = f'template {{\n destination = "secrets/key"\n perms = "{perms}"\n data = "the key"\n }}'
    return task("t", "sh", "-c", "cat $NOMAD_SECRETS_DIR/key", extra=template)


with subtest("limits of the task's own directories"):
    def listen(*arguments):
        return task("t", "python3", "-ISc", LISTEN, *arguments, cpu=1000)
    wanted = {"444": "complete", "400": "failed", "107": "complete", "108": "failed", "108-relative": "complete"}
    groups = [group(perms, secret(perms)) for perms in ("444", "400")]
    groups += [group("107", listen("107", "absolute")), group("108", listen("108", "absolute")), group("108-relative", listen("108", "relative"))]
    run_job(job("own", *groups))
    done = wait_for_groups("own", wanted)
    t.assertEqual(wait_for_log(done["444"], "the key"), "the key")
    wait_for_log(done["400"], "Permission denied", stderr=True)
    wait_for_log(done["108"], "AF_UNIX path too long", stderr=True)
    # the mode of the directory keeps other users out
    key = f"{data_dir().rsplit('/', 1)[0]}/alloc_mounts/{done['444']['ID']}-t/secrets/key"
    t.assertEqual(machine.succeed(f"cat {key}"), "the key")
    machine.fail(f"setpriv --reuid {UID} --regid {UID} --clear-groups cat {key}")
