"""File systems of the guest."""

from .guest import machine


def filesystem(kind: str, place: str) -> str:
    """Mounts a new file system of this kind, and returns where."""
    make = {"ext4": "mkfs.ext4 -q", "xfs": "mkfs.xfs -q", "btrfs": "mkfs.btrfs -q"}[kind]
    image = f"/var/tmp/{place.strip('/').replace('/', '-')}.img"
    machine.succeed("modprobe loop", f"mkdir -p {place}; truncate -s 400M {image}; {make} {image}; mount -o loop {image} {place}; chmod 755 {place}")
    return place


def mappable(place: str) -> str:
    """Makes a folder on a file system that can be idmapped: the root of the Debian guests is an overlay, which cannot."""
    machine.succeed(f"mkdir -p {place}")
    if machine.succeed(f"stat -f -c %T {place}").strip() == "overlayfs":
        filesystem("ext4", place)
    return place
