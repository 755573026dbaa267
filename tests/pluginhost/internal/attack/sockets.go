package attack

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The sockets of the host's services. Where a host has none, serve makes one.
var services = []struct{ name, path, what string }{
	{"docker", "/run/docker.sock", "Docker's socket"},
	{"containerd", "/run/containerd/containerd.sock", "containerd's socket"},
	{"podman", "/run/podman/podman.sock", "Podman's socket"},
	{"dbus", "/run/dbus/system_bus_socket", "the system D-Bus"},
	{"systemd-private", "/run/systemd/private", "systemd's private socket"},
	{"systemd-notify", "/run/systemd/notify", "systemd's notification socket"},
	{"journald", "/run/systemd/journal/socket", "journald's own socket"},
	{"nscd", "/run/nscd/socket", "nscd"},
}

// sockets are attacks on unix sockets.
func sockets() []Attack {
	all := []Attack{
		{Name: "stream-socket", Tries: "connect to a stream socket outside", run: func(t *targets) error { return connects(unix.SOCK_STREAM, t.path("stream")) }},
		{Name: "datagram-socket", Tries: "send to a datagram socket outside", run: func(t *targets) error { return sends(t.path("datagram")) }},
		{Name: "abstract-stream", Tries: "connect to an abstract socket of the host", run: func(t *targets) error { return connects(unix.SOCK_STREAM, "@"+t.Stream) },
			ByDesign: "Before Linux 6.12 nothing restricts them: they have no permissions, and belong to the network namespace, which is the host's here."},
		{Name: "abstract-datagram", Tries: "send to an abstract datagram socket of the host", run: func(t *targets) error { return sends("@" + t.Datagram) },
			ByDesign: "As abstract-stream."},
		{Name: "plugin-socket", Tries: "connect to the plugin's socket", run: func(t *targets) error { return connects(unix.SOCK_STREAM, t.Plugin) }},
		{Name: "syslog-socket", Tries: "write a line to the host's syslog by /dev/log", run: func(*targets) error { return sends("/dev/log") },
			ByDesign: "A default unveil: syslog is open to every user of the host. journald records who wrote and limits how much."},
	}
	for _, service := range services {
		all = append(all, Attack{Name: service.name, Tries: "connect to " + service.what, run: func(*targets) error {
			err := connects(unix.SOCK_STREAM, service.path)
			if err == unix.EPROTOTYPE {
				return connects(unix.SOCK_DGRAM, service.path)
			}
			return err
		}})
	}
	return all
}

// connects by the name of a socket; "@" begins an abstract one. A directory is entered first, because
// the names of sockets are short.
func connects(kind int, name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: short(name)})
}

func sends(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte("<15>attack: a line"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: short(name)})
}

func short(name string) string {
	if len(name) < 100 || name[0] == '@' || os.Chdir(filepath.Dir(name)) != nil {
		return name
	}
	return filepath.Base(name)
}
