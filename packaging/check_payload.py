#!/usr/bin/env python3
"""check_payload.py FILE.deb FILE.rpm: checks that both packages contain the files of an installation and activate nothing, and
that no other package of the same name is newer.

Needs dpkg-deb and rpm; it changes neither database.
"""

import io
import subprocess
import sys
import tarfile

NAME = "nomad-driver-exec2"
DOC = f"/usr/share/doc/{NAME}"
BOTH = {
    f"/usr/bin/{NAME}": "-rwxr-xr-x",
    f"/opt/nomad/data/plugins/{NAME}": "l",
    f"/usr/share/man/man8/{NAME}.8.gz": "-rw-r--r--",
    f"/usr/share/bash-completion/completions/{NAME}": "-rw-r--r--",
    f"/usr/share/fish/vendor_completions.d/{NAME}.fish": "-rw-r--r--",
    f"{DOC}/README.md": "-rw-r--r--",
    f"{DOC}/changelog.gz": "-rw-r--r--",
    f"{DOC}/docs/security.md": "-rw-r--r--",
    f"{DOC}/examples/exec2.hcl": "-rw-r--r--",
    f"{DOC}/examples/env.nomad.hcl": "-rw-r--r--",
    f"{DOC}/sbom.cdx.json": "-rw-r--r--",
    f"{DOC}/third-party.txt.gz": "-rw-r--r--",
}
DEB = {
    f"{DOC}/copyright": "-rw-r--r--",
    f"{DOC}/changelog.Debian.gz": "-rw-r--r--",
    f"/usr/share/zsh/vendor-completions/_{NAME}": "-rw-r--r--",
    f"/usr/share/lintian/overrides/{NAME}": "-rw-r--r--",
}
RPM = {
    f"/usr/share/licenses/{NAME}/LICENSE": "-rw-r--r--",
    f"/usr/share/zsh/site-functions/_{NAME}": "-rw-r--r--",
}
LINK = f"/opt/nomad/data/plugins/{NAME} -> /usr/bin/{NAME}"
# The newest package of this name in HashiCorp's repositories (see epoch in nfpm.yaml).
THEIRS = "0.1.2-1"
# Nothing is activated: an agent reads all of /etc/nomad.d, systemd all of its directories.
NOWHERE = ("/etc/", "/usr/lib/systemd/", "/lib/systemd/", "/usr/lib/tmpfiles.d/", "/usr/lib/sysusers.d/", "/run/", "/var/")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def files(listing: str, column: int) -> dict[str, str]:
    """{path: mode} of everything except directories, and the lines."""
    found = {}
    for line in listing.splitlines():
        fields = line.split(None, column)
        if not fields[0].startswith("d"):
            found[fields[column].split(" -> ")[0].lstrip(".")] = fields[0]
            owner = fields[1] if "/" in fields[1] else f"{fields[2]}/{fields[3]}"
            assert owner in ("root/root", "0/0"), f"not root's: {line}"
    return found


def check(what: str, found: dict[str, str], wanted: dict[str, str], listing: str) -> None:
    for path, mode in wanted.items():
        assert path in found, f"{what} lacks {path}"
        assert found[path].startswith(mode), f"{what}: {path} is {found[path]}, not {mode}"
    strays = [path for path in found if path.startswith(NOWHERE) or (path not in wanted and not path.startswith(DOC + "/"))]
    assert not strays, f"{what} has what it should not: {strays}"
    assert LINK in listing, f"{what}: the link is another: {listing}"
    print(f"{what}: {len(found)} files as they should be")


def main() -> None:
    deb, rpm = sys.argv[1:]
    listing = run("dpkg-deb", "-c", deb)
    check("the deb", files(listing, 5), {**BOTH, **DEB}, listing)
    archive = subprocess.run(["dpkg-deb", "--ctrl-tarfile", deb], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        control = sorted(name.lstrip("./") for name in members.getnames())
    assert [name for name in control if name] == ["control", "md5sums"], f"the deb has more than a description: {control}"
    assert not run("dpkg-deb", "-f", deb, "Depends", "Pre-Depends", "Conflicts").strip(), "the deb depends on something"

    version = run("dpkg-deb", "-f", deb, "Version").strip()
    subprocess.run(["dpkg", "--compare-versions", version, "gt", THEIRS], check=True)

    listing = run("rpm", "-qplv", rpm)
    check("the rpm", files(listing, 8), {**BOTH, **RPM}, listing)
    assert not run("rpm", "-qp", "--scripts", "--triggers", rpm).strip(), "the rpm has scripts"
    needs = [line for line in run("rpm", "-qp", "--requires", rpm).splitlines() if not line.startswith("rpmlib(")]
    assert not needs, f"the rpm needs {needs}"
    # rpm compares the epoch first, and a package without one has 0
    assert run("rpm", "-qp", "--qf", "%{EPOCH}", rpm) == "1", "the rpm has not the epoch 1"


if __name__ == "__main__":
    main()
