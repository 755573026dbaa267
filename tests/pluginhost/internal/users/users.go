package main

import (
	"fmt"
	"math/rand/v2"
	"os/user"
	"strconv"
	"strings"
	"sync"
)

// The pool of dynamic users, Nomad's default range.
const (
	dynamicUserMin = 80000
	dynamicUserMax = 89999
)

// userPool hands out uids that no other task uses.
type userPool struct {
	mu   sync.Mutex
	next int
	used map[int]bool
}

// newUserPool begins somewhere in the range, so that a restarted host does not
// hand out the users of just now again.
func newUserPool() *userPool {
	return &userPool{next: dynamicUserMin + rand.IntN(dynamicUserMax-dynamicUserMin+1), used: map[int]bool{}}
}

// acquire returns a user name of the form nomad-80123.
func (p *userPool) acquire() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range dynamicUserMax - dynamicUserMin + 1 {
		id := p.next
		if p.next++; p.next > dynamicUserMax {
			p.next = dynamicUserMin
		}
		if !p.used[id] {
			p.used[id] = true
			return fmt.Sprintf("nomad-%d", id), nil
		}
	}
	return "", fmt.Errorf("all dynamic users from %d to %d are in use", dynamicUserMin, dynamicUserMax)
}

// mark takes a restored task's user out of the pool.
func (p *userPool) mark(name string) {
	if id, ok := dynamicID(name); ok {
		p.mu.Lock()
		p.used[id] = true
		p.mu.Unlock()
	}
}

// release gives a user back; names from elsewhere are left alone.
func (p *userPool) release(name string) {
	if id, ok := dynamicID(name); ok {
		p.mu.Lock()
		delete(p.used, id)
		p.mu.Unlock()
	}
}

// dynamicID parses nomad-N.
func dynamicID(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "nomad-")
	if !ok {
		return 0, false
	}
	id, err := strconv.Atoi(digits)
	return id, err == nil && id >= 0
}

// lookupUser returns uid and gid of a dynamic or a named user; the Nomad client
// knows no numbers. An empty name is root, as there.
func lookupUser(name string) (uid, gid int, err error) {
	if name == "" {
		return 0, 0, nil
	}
	if id, ok := dynamicID(name); ok {
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
