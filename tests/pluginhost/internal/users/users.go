// Package users lends dynamic users and looks up named ones.
package users

import (
	"fmt"
	"math/rand/v2"
	"os/user"
	"strconv"
	"strings"
	"sync"
)

// The range of dynamic users, Nomad's default.
const (
	dynamicMin = 80000
	dynamicMax = 89999
)

// Pool lends uids that no other task uses.
type Pool struct {
	mu   sync.Mutex
	next int
	used map[int]bool
}

// NewPool starts at a random place in the range, so that a restarted host does
// not reuse the users of a moment ago.
func NewPool() *Pool {
	return &Pool{next: dynamicMin + rand.IntN(dynamicMax-dynamicMin+1), used: map[int]bool{}}
}

// Acquire returns a user name of the form nomad-80123.
func (p *Pool) Acquire() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range dynamicMax - dynamicMin + 1 {
		id := p.next
		if p.next++; p.next > dynamicMax {
			p.next = dynamicMin
		}
		if !p.used[id] {
			p.used[id] = true
			return fmt.Sprintf("nomad-%d", id), nil
		}
	}
	return "", fmt.Errorf("all dynamic users from %d to %d are in use", dynamicMin, dynamicMax)
}

// Mark takes a restored task's user out of the pool.
func (p *Pool) Mark(name string) {
	if id, ok := DynamicID(name); ok {
		p.mu.Lock()
		p.used[id] = true
		p.mu.Unlock()
	}
}

// Release gives a user back; names of other users are ignored.
func (p *Pool) Release(name string) {
	if id, ok := DynamicID(name); ok {
		p.mu.Lock()
		delete(p.used, id)
		p.mu.Unlock()
	}
}

// DynamicID parses nomad-N.
func DynamicID(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "nomad-")
	if !ok {
		return 0, false
	}
	id, err := strconv.Atoi(digits)
	return id, err == nil && id >= 0
}

// Lookup returns uid and gid of a dynamic or a named user; like the Nomad client
// it takes no numbers. An empty name is root.
func Lookup(name string) (uid, gid int, err error) {
	if name == "" {
		return 0, 0, nil
	}
	if id, ok := DynamicID(name); ok {
		return id, id, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("failed to look up user %q: %w", name, err)
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}
