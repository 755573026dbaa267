// Package netns makes the network of an alloc in bridge mode: a namespace, a veth
// pair to a bridge, an address, and forwarded ports.
package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"pluginhost/internal/ids"
)

// The bridge of Nomad's bridge mode: its default name and subnet.
const (
	bridgeName   = "nomad"
	bridgeSubnet = "172.26.64.0/20"
)

// namespaces is where iproute2 keeps the names of network namespaces.
const namespaces = "/var/run/netns"

// Interface is the name of the network interface inside an alloc's namespace.
const Interface = "eth0"

// The range of dynamic ports, Nomad's default.
const minDynamicPort, maxDynamicPort = 20000, 32000

// dialTimeout bounds the connection to a forwarded port's target.
const dialTimeout = 5 * time.Second

// ip runs iproute2.
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("failed to run ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Path is the file that names an alloc's namespace.
func Path(allocID string) string { return filepath.Join(namespaces, allocID) }

// Make creates an alloc's network namespace with loopback up and, unless the
// address is empty, a veth pair to the bridge.
func Make(allocID, address string) error {
	if err := ip("netns", "add", allocID); err != nil {
		return err
	}
	if err := ip("-n", allocID, "link", "set", "lo", "up"); err != nil || address == "" {
		return err
	}
	prefix := netip.MustParsePrefix(bridgeSubnet)
	gateway := prefix.Addr().Next()
	bits := fmt.Sprint(prefix.Bits())
	if err := makeBridge(gateway.String() + "/" + bits); err != nil {
		return err
	}
	host := "veth" + ids.Short(allocID)
	for _, args := range [][]string{
		{"link", "set", bridgeName, "up"},
		{"link", "add", host, "type", "veth", "peer", "name", Interface, "netns", allocID},
		{"link", "set", host, "master", bridgeName, "up"},
		{"-n", allocID, "addr", "add", address + "/" + bits, "dev", Interface},
		{"-n", allocID, "link", "set", Interface, "up"},
		{"-n", allocID, "route", "add", "default", "via", gateway.String()},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

// One alloc makes the bridge for all of those that start at the same time.
var making sync.Mutex

func makeBridge(address string) error {
	making.Lock()
	defer making.Unlock()
	if _, err := net.InterfaceByName(bridgeName); err == nil {
		return nil
	}
	if err := ip("link", "add", bridgeName, "type", "bridge"); err != nil {
		return err
	}
	return ip("addr", "add", address, "dev", bridgeName)
}

// Remove deletes an alloc's namespace, and with it the veth pair.
func Remove(allocID string) error {
	if _, err := os.Stat(Path(allocID)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return ip("netns", "del", allocID)
}

// BridgeAddress picks an unused address of the bridge's subnet.
func BridgeAddress(used map[string]bool) (string, error) {
	prefix := netip.MustParsePrefix(bridgeSubnet)
	base := prefix.Addr().As4()
	first := binary.BigEndian.Uint32(base[:])
	size := uint32(1) << (32 - prefix.Bits())
	for n := uint32(2); n < size-1; n++ { // .1 is the bridge
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], first+n)
		if a := netip.AddrFrom4(b).String(); !used[a] {
			return a, nil
		}
	}
	return "", fmt.Errorf("no free address in %s", bridgeSubnet)
}

// FreePort picks a dynamic port that is not in use.
func FreePort(host string, used map[int]bool) (int, error) {
	for p := minDynamicPort; p <= maxDynamicPort; p++ {
		if used[p] {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(p)))
		if err != nil {
			continue
		}
		l.Close()
		return p, nil
	}
	return 0, fmt.Errorf("no free port between %d and %d", minDynamicPort, maxDynamicPort)
}

// HostAddress is the host's address on its default route, or loopback without one.
func HostAddress() string {
	conn, err := net.Dial("udp4", "192.0.2.1:9") // TEST-NET-1: nothing is sent
	if err != nil {
		return "127.0.0.1"
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// Forwarder connects a host port to an alloc's address, in place of the NAT rules
// of Nomad's CNI plugins.
type Forwarder struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Forward starts a forwarder from listen to target.
func Forward(listen, target string) (*Forwarder, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Forwarder{cancel: cancel}
	context.AfterFunc(ctx, func() { l.Close() })
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.carry(ctx, conn, target)
		}
	}()
	return f, nil
}

func (f *Forwarder) carry(ctx context.Context, in net.Conn, target string) {
	defer in.Close()
	out, err := net.DialTimeout("tcp", target, dialTimeout)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	done := make(chan struct{}, 2)
	pipe := func(dst, src net.Conn) {
		io.Copy(dst, src)
		if t, ok := dst.(*net.TCPConn); ok {
			t.CloseWrite()
		}
		done <- struct{}{}
	}
	go pipe(out, in)
	go pipe(in, out)
	<-done
	<-done
}

// Stop ends the forwarder and its connections.
func (f *Forwarder) Stop() {
	f.cancel()
	f.wg.Wait()
}
