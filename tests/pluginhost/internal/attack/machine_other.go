//go:build !amd64

package attack

// machine are attacks that only this kind of processor has.
func machine() []Attack { return nil }
