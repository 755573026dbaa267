// Package attack tries what a hostile task could try, and reports what stopped it. Each
// attack runs as a task, and as a control on the host without a sandbox, where it has to
// succeed.
package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"
)

// Attack is one row of the table in docs/attacks.md.
type Attack struct {
	Name  string `json:"name"`
	Group string `json:"group"`
	// Tries says in one line what would be a success.
	Tries string `json:"tries"`
	// ByDesign is the reason why it succeeds with the default options, for each user. Without
	// one it must not.
	ByDesign string `json:"by_design,omitempty"`
	// ByDesignRoot is the same for root alone.
	ByDesignRoot string `json:"by_design_root,omitempty"`
	// ByDesignCapable is the same for a user with the capabilities that jobs may have by
	// default.
	ByDesignCapable string `json:"by_design_capable,omitempty"`
	// Needs names what some kernels lack, so that even the control may fail.
	Needs string `json:"needs,omitempty"`

	// run returns nil if the attack succeeded.
	run func(t *targets) error
	// alone asks for a process of its own: an attack that changes what later ones in the
	// same process would see, such as its root directory or a namespace.
	alone bool
}

// absent is the answer of an attack that has nothing to attack.
type absent string

func (a absent) Error() string { return string(a) }

// hidden is the answer where an attack reads something, but not what it looks for.
var hidden = errors.New("hidden")

// reached takes errors that only a caller with the privilege gets for a success: what the
// attack asks for is senseless on purpose, so that the control changes nothing.
func reached(err error, passed ...unix.Errno) error {
	var errno unix.Errno
	if errors.As(err, &errno) && slices.Contains(passed, errno) {
		return nil
	}
	return err
}

// result is what the process of an attack prints.
func result(err error) string {
	var errno unix.Errno
	var none absent
	switch {
	case err == nil:
		return succeeded
	case errors.As(err, &none):
		return "absent: " + string(none)
	case err == hidden:
		return refused + hidden.Error()
	case errors.As(err, &errno):
		return refused + unix.ErrnoName(errno)
	case errors.Is(err, fs.ErrNotExist):
		return refused + "ENOENT"
	}
	return "error: " + err.Error()
}

const (
	succeeded = "succeeded"
	refused   = "refused "
)

// Attacks is the whole table, group by group.
func Attacks() []Attack {
	groups := []struct {
		name    string
		attacks []Attack
		// alone is that of all attacks of the group.
		alone bool
	}{
		{"files", files(), false},
		{"other processes' files", procFiles(), false},
		{"descriptors", descriptors(), false},
		{"sockets", sockets(), false},
		{"processes", processes(), false},
		{"processes of a user or group", many(), false},
		{"the shim", shim(), false},
		{"cgroups", cgroups(), false},
		{"privileges", privileges(), false},
		{"set-id files", setID(), false},
		{"mounts and namespaces", mounts(), true},
		{"kernel", kernel(), false},
		{"information", information(), false},
		{"keyrings", keyrings(), false},
		{"terminals and devices", devices(), false},
		{"network", network(), false},
	}
	var all []Attack
	for _, group := range groups {
		for _, attack := range group.attacks {
			attack.Group, attack.alone = group.name, attack.alone || group.alone
			all = append(all, attack)
		}
	}
	return all
}

func find(name string) (Attack, error) {
	all := Attacks()
	i := slices.IndexFunc(all, func(a Attack) bool { return a.Name == name })
	if i < 0 {
		return Attack{}, fmt.Errorf("no attack has the name %q; attack list has all", name)
	}
	return all[i], nil
}
