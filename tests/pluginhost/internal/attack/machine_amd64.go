package attack

import "golang.org/x/sys/unix"

// machine are attacks that only this kind of processor has.
func machine() []Attack {
	return []Attack{
		{Name: "iopl", Tries: "use all I/O ports", run: func(*targets) error { return call(unix.SYS_IOPL, 3) }},
		{Name: "ioperm", Tries: "use one I/O port", run: func(*targets) error { return call(unix.SYS_IOPERM, 0x80, 1, 1) }},
	}
}
