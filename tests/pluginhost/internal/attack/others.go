package attack

import (
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// keyrings are attacks on keys, which belong to a uid and not to a task.
func keyrings() []Attack {
	return []Attack{
		{Name: "key-read", Tries: "read a key of the task's uid by its number", run: func(t *targets) error {
			buffer := make([]byte, 64)
			if _, err := unix.KeyctlBuffer(unix.KEYCTL_READ, t.Key, buffer, 0); err != nil {
				return err
			}
			return contains(buffer)
		}},
		{Name: "key-search", Tries: "find a key in the user keyring", run: func(*targets) error {
			_, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", keyName, 0)
			return err
		}},
		{Name: "key-add", Tries: "leave a key in the user keyring", run: func(*targets) error {
			_, err := unix.AddKey("user", "left", []byte("x"), unix.KEY_SPEC_USER_KEYRING)
			return err
		}},
		{Name: "key-persistent", Tries: "open the persistent keyring", run: func(*targets) error {
			_, err := unix.KeyctlInt(unix.KEYCTL_GET_PERSISTENT, -1, unix.KEY_SPEC_PROCESS_KEYRING, 0, 0)
			return err
		}},
		{Name: "key-other-user", Tries: "read a key that another user lets everybody read", run: func(t *targets) error {
			buffer := make([]byte, 64)
			if _, err := unix.KeyctlBuffer(unix.KEYCTL_READ, t.OtherKey, buffer, 0); err != nil {
				return err
			}
			return contains(buffer)
		}},
		{Name: "key-persistent-other", Tries: "open the persistent keyring of another user", run: func(t *targets) error {
			_, err := unix.KeyctlInt(unix.KEYCTL_GET_PERSISTENT, t.Other, unix.KEY_SPEC_PROCESS_KEYRING, 0, 0)
			return err
		}},
		{Name: "key-session", alone: true, Tries: "join a session keyring by its name", run: func(*targets) error {
			_, err := unix.KeyctlJoinSessionKeyring(keyName)
			return err
		}},
		{Name: "key-request", Tries: "have the kernel run a program for a key", run: func(*targets) error {
			_, err := unix.RequestKey("user", "nonexistent", "", unix.KEY_SPEC_PROCESS_KEYRING)
			return reached(err, unix.ENOKEY)
		}},
	}
}

const keyName = "exec2-attack"

// devices are attacks on terminals and device files.
func devices() []Attack {
	opens := func(path string) func(*targets) error {
		return func(*targets) error { return open(path, unix.O_RDWR) }
	}
	return []Attack{
		{Name: "tiocsti", alone: true, Tries: "type into a terminal (TIOCSTI)", run: onTerminal(func(fd int) error {
			letter := byte('x')
			return call(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSTI, address(&letter))
		})},
		{Name: "line-discipline", alone: true, Tries: "load a line discipline (TIOCSETD)", run: onTerminal(func(fd int) error {
			discipline := int32(0)
			return call(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSETD, address(&discipline))
		})},
		{Name: "tioclinux", alone: true, Tries: "paste into a console (TIOCLINUX)", run: onTerminal(func(fd int) error {
			return reached(call(unix.SYS_IOCTL, uintptr(fd), unix.TIOCLINUX, address(new([64]byte))), unix.ENOTTY, unix.EINVAL)
		})},
		{Name: "console-output", alone: true, Tries: "take the console's output (TIOCCONS)", run: onTerminal(takesConsole)},
		{Name: "terminal-open", alone: true, Tries: "open a terminal of a user of the host", run: func(t *targets) error { return open(t.Terminal, unix.O_RDWR) }},
		{Name: "terminal-steal", alone: true, Tries: "make it the controlling terminal", run: func(t *targets) error {
			fd, err := unix.Open(t.Terminal, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return unix.IoctlSetInt(fd, unix.TIOCSCTTY, 1)
		}},
		{Name: "mknod-disk", Tries: "make a node of the host's disk and open it", run: func(t *targets) error {
			path := t.own("disk")
			if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(t.Disk)); err != nil {
				return err
			}
			defer os.Remove(path)
			return open(path, unix.O_RDONLY)
		}},
		{Name: "mknod-null", Tries: "make a node of a harmless device", run: func(t *targets) error {
			path := t.own("null")
			defer os.Remove(path)
			return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
		}},
		{Name: "disk", Tries: "open the host's disk", run: func(t *targets) error { return open(t.DiskNode, unix.O_RDONLY) }},
		{Name: "dev-mem", Tries: "open /dev/mem", run: opens("/dev/mem"), Needs: "/dev/mem"},
		{Name: "dev-kmsg", Tries: "read and write the kernel's log by /dev/kmsg", run: opens("/dev/kmsg")},
		{Name: "dev-console", Tries: "open the console", run: opens("/dev/console")},
		{Name: "dev-loop", Tries: "attach a file as a disk (/dev/loop-control)", run: opens("/dev/loop-control"), Needs: "loop devices"},
		{Name: "dev-tun", Tries: "make a network interface (/dev/net/tun)", run: opens("/dev/net/tun"), Needs: "/dev/net/tun"},
		{Name: "dev-fuse", Tries: "serve a file system (/dev/fuse)", run: opens("/dev/fuse"), Needs: "/dev/fuse"},
		{Name: "dev-shm-host", Tries: "read the host's shared memory", run: func(*targets) error { return reads("/dev/shm/exec2-attack") }},
		{Name: "tmp-host", Tries: "read a file in the host's /tmp", run: func(*targets) error { return reads("/tmp/exec2-attack") }},
		{Name: "sysv-host", Tries: "attach System V shared memory of the host", run: func(*targets) error {
			id, err := unix.SysvShmGet(sysvKey, 0, 0)
			if err != nil {
				return err
			}
			_, err = unix.SysvShmAttach(id, 0, unix.SHM_RDONLY)
			return err
		}},
		{Name: "mqueue-host", Tries: "open a message queue of the host", run: func(*targets) error {
			return closing(callFd(unix.SYS_MQ_OPEN, text("exec2-attack"), unix.O_RDWR|unix.O_NONBLOCK, 0, 0))
		}},
	}
}

const sysvKey = 0x0e2ec2

// onTerminal makes a terminal of its own the controlling one.
func onTerminal(attempt func(int) error) func(*targets) error {
	return func(*targets) error {
		master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		unlocked := int32(0)
		if err := call(unix.SYS_IOCTL, uintptr(master), unix.TIOCSPTLCK, address(&unlocked)); err != nil {
			return err
		}
		number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
		if err != nil {
			return err
		}
		fd, err := unix.Open("/dev/pts/"+strconv.Itoa(number), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0); err != nil {
			return err
		}
		return attempt(fd)
	}
}

// takesConsole gives the console's output back.
func takesConsole(fd int) error {
	if err := call(unix.SYS_IOCTL, uintptr(fd), unix.TIOCCONS, 0); err != nil {
		return err
	}
	console, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == nil {
		call(unix.SYS_IOCTL, uintptr(console), unix.TIOCCONS, 0)
	}
	return nil
}

// network are attacks by the network, in the host's network namespace.
func network() []Attack {
	socket := func(family, kind, protocol int) func(*targets) error {
		return func(*targets) error { return closing(unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)) }
	}
	// The kernel refuses a type that does not exist before it looks for the family, which not every kernel has.
	asks := func(family, protocol int) func(*targets) error {
		return func(*targets) error {
			const noType = 15
			return reached(closing(unix.Socket(family, noType, protocol)), unix.EINVAL)
		}
	}
	const host = "In the host's network, which is what the job asked for, a task reaches what the host reaches. Use bridge mode."
	return []Attack{
		{Name: "raw-socket", Tries: "send raw packets", run: socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		{Name: "packet-socket", Tries: "read the traffic of the host", run: socket(unix.AF_PACKET, unix.SOCK_RAW, 0)},
		{Name: "netlink-link", Tries: "configure the network", run: configuresLink},
		{Name: "netlink-list", Tries: "list the host's addresses (netlink)", run: func(*targets) error { return listsLinks() },
			ByDesign: "Programs need the addresses of their network namespace; that of this task is the host's."},
		{Name: "netlink-generic", Tries: "use generic netlink", run: socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC)},
		{Name: "netlink-netfilter", Tries: "talk to the packet filter", run: socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), Needs: "netfilter's netlink"},
		{Name: "netlink-audit", Tries: "ask the kernel for a socket of its audit system", run: asks(unix.AF_NETLINK, unix.NETLINK_AUDIT)},
		{Name: "netlink-uevent", Tries: "receive the host's device events", run: socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT),
			ByDesign: "Programs that use libudev need them. They are the names of devices and their drivers, which every user of the host may read."},
		{Name: "netlink-diag", Tries: "list the host's sockets with their owners (sock_diag)", run: socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG),
			ByDesign: "As proc-net: programs such as ss use it, and it is about the task's network namespace."},
		{Name: "netlink-xfrm", Tries: "configure IPsec", run: socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM), Needs: "IPsec"},
		{Name: "af-can", Tries: "ask the kernel for AF_CAN, whose module it would load", run: asks(unix.AF_CAN, unix.CAN_RAW)},
		{Name: "af-bluetooth", Tries: "the same for AF_BLUETOOTH", run: asks(unix.AF_BLUETOOTH, 0)},
		{Name: "af-tipc", Tries: "the same for AF_TIPC", run: asks(unix.AF_TIPC, 0)},
		{Name: "af-rds", Tries: "the same for AF_RDS", run: asks(unix.AF_RDS, 0)},
		{Name: "af-key", Tries: "read the keys of IPsec (AF_KEY)", run: socket(unix.AF_KEY, unix.SOCK_RAW, 2), Needs: "AF_KEY"},
		{Name: "af-smc", Tries: "use shared memory of other hosts (AF_SMC)", run: socket(unix.AF_SMC, unix.SOCK_STREAM, 0), Needs: "AF_SMC"},
		{Name: "af-alg", Tries: "use the kernel's cryptography (AF_ALG)", run: socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), Needs: "AF_ALG"},
		{Name: "af-vsock", Tries: "talk to the hypervisor (AF_VSOCK)", run: socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), Needs: "AF_VSOCK"},
		{Name: "af-xdp", Tries: "bypass the network stack (AF_XDP)", run: socket(unix.AF_XDP, unix.SOCK_RAW, 0), Needs: "AF_XDP"},
		{Name: "bind-low", ByDesignCapable: "With `net_bind_service`, which is for that.", Tries: "bind a port below 1024", run: func(*targets) error { return binds(79) }},
		{Name: "bind-high", Tries: "bind any other port", run: func(*targets) error { return binds(0) }, ByDesign: host},
		{Name: "connect-loopback", Tries: "connect to a service on the host's loopback address", ByDesign: host, run: func(t *targets) error {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(t.Port)), 10*time.Second)
			if err != nil {
				return err
			}
			return conn.Close()
		}},
		{Name: "socket-mark", Tries: "pass by routing and packet filters (SO_MARK)", run: option(unix.SOL_SOCKET, unix.SO_MARK)},
		{Name: "transparent", Tries: "take traffic for other addresses (IP_TRANSPARENT)", run: option(unix.SOL_IP, unix.IP_TRANSPARENT)},
	}
}

func option(level, name int) func(*targets) error {
	return func(*targets) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, level, name, 1)
	}
}

func binds(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: port})
}

func listsLinks() error {
	_, err := net.Interfaces()
	if e, ok := err.(*net.OpError); ok {
		if inner, ok := e.Err.(*os.SyscallError); ok {
			return inner.Err
		}
	}
	return err
}

// configuresLink sets the loopback interface up, which it is.
func configuresLink(*targets) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
