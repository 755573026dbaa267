// Package ids makes the identifiers of allocations, nodes and evaluations.
package ids

import (
	"crypto/rand"
	"fmt"
)

// shortLength is how many characters of an id Nomad shows and people type.
const shortLength = 8

// New returns a random (version 4) UUID in its usual text form.
func New() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return FromBytes(b)
}

// FromBytes returns the UUID made of b, with the version and variant bits set.
func FromBytes(b [16]byte) string {
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Short returns the form that people type.
func Short(id string) string {
	if len(id) > shortLength {
		return id[:shortLength]
	}
	return id
}
