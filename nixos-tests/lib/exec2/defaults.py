"""The default unveils: the table of docs/security.md."""

# Folders end in a slash; a `*` stands for any characters but slashes.
DEFAULTS = {
    "rx": """/bin/ /sbin/ /usr/bin/ /usr/sbin/ /usr/games/ /usr/local/bin/ /usr/local/sbin/ /lib/ /lib64/ /usr/lib/ /usr/lib32/ /usr/lib64/
             /usr/libexec/ /usr/local/lib/ /usr/local/lib64/ /usr/local/libexec/ /usr/share/ /usr/local/share/ /nix/store/
             /run/current-system/sw/""",
    "r": """/etc/ld.so.conf /etc/ld.so.cache /etc/ld.so.conf.d/ /usr/include/ /usr/local/include/ /dev/zero /dev/random /dev/urandom
            /etc/localtime /etc/timezone /etc/alternatives/ /etc/mime.types /etc/magic /etc/*-release /etc/debian_version
            /etc/gitconfig /etc/java/ /etc/java-*openjdk/ /etc/perl/ /etc/php.ini /etc/php.d/ /etc/php*/php.ini /etc/php*/conf.d/ /etc/php*/cli/
            /etc/php/*/cli/ /etc/php/*/mods-available/ /etc/python3*/ /etc/fonts/ /var/cache/fontconfig/ /etc/manpath.config /etc/man_db.conf
            /etc/hosts /etc/host.conf /etc/hostname /etc/nsswitch.conf /etc/gai.conf /etc/services /etc/protocols
            /etc/resolv.conf /run/systemd/resolve/ /run/resolvconf/ /run/netconfig/ /etc/ssl/certs/ /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem
            /etc/pki/tls/certs/ /etc/pki/tls/cacert.pem
            /etc/pki/ca-trust/extracted/ /etc/ca-certificates/extracted/ /var/lib/ca-certificates/ /etc/ssl/openssl.cnf /etc/ssl/engines*.d/
            /etc/ssl/engdef*.d/ /etc/pki/tls/openssl.cnf /etc/pki/tls/openssl.d/ /etc/crypto-policies/
            /proc/ /sys/devices/system/cpu/ /sys/fs/cgroup/cgroup.controllers""",
    "rw": "/dev/null /dev/full",
    "w": "/dev/log",
}
EXAMPLES = {
    "/*-": "/exec2-",
    "java-*": "java-99-",
    "php/*": "php/9.9",
    "php*": "php99",
    "python3*": "python3.99",
    "engines*": "engines3",
    "engdef*": "engdef3",
}


def patterns() -> list[str]:
    return " ".join(DEFAULTS.values()).split()


def examples() -> dict[str, list[str]]:
    """The paths by mode, with a name in place of each pattern."""

    def example(path: str) -> str:
        for pattern, name in EXAMPLES.items():
            path = path.replace(pattern, name)
        return path

    return {mode: [example(path) for path in paths.split()] for mode, paths in DEFAULTS.items()}
