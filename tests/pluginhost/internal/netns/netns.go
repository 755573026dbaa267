package main

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
	"strings"
	"sync"
	"time"
)

// The bridge of Nomad's bridge mode: its default name and subnet.
const (
	bridgeName   = "nomad"
	bridgeSubnet = "172.26.64.0/20"
	netnsDir     = "/var/run/netns"
)

// dynamic ports, Nomad's default range.
const minDynamicPort, maxDynamicPort = 20000, 32000

// NetworkStatus is the address of an alloc with a network of its own.
type NetworkStatus struct {
	InterfaceName string
	Address       string
}

// ip runs iproute2.
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// makeNetns creates an alloc's network namespace with loopback up, and with
// address != "" a veth pair to the bridge.
func makeNetns(allocID, address string) (*NetworkStatus, error) {
	if err := ip("netns", "add", allocID); err != nil {
		return nil, err
	}
	if err := ip("-n", allocID, "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	if address == "" {
		return &NetworkStatus{}, nil
	}
	prefix := netip.MustParsePrefix(bridgeSubnet)
	gateway := prefix.Addr().Next()
	bits := fmt.Sprint(prefix.Bits())
	if _, err := net.InterfaceByName(bridgeName); err != nil {
		if err := ip("link", "add", bridgeName, "type", "bridge"); err != nil {
			return nil, err
		}
		if err := ip("addr", "add", gateway.String()+"/"+bits, "dev", bridgeName); err != nil {
			return nil, err
		}
	}
	host := "veth" + short(allocID)
	for _, args := range [][]string{
		{"link", "set", bridgeName, "up"},
		{"link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", allocID},
		{"link", "set", host, "master", bridgeName, "up"},
		{"-n", allocID, "addr", "add", address + "/" + bits, "dev", "eth0"},
		{"-n", allocID, "link", "set", "eth0", "up"},
		{"-n", allocID, "route", "add", "default", "via", gateway.String()},
	} {
		if err := ip(args...); err != nil {
			return nil, err
		}
	}
	return &NetworkStatus{InterfaceName: "eth0", Address: address}, nil
}

// removeNetns deletes it; the veth pair goes with it.
func removeNetns(allocID string) error {
	if _, err := os.Stat(netnsDir + "/" + allocID); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return ip("netns", "del", allocID)
}

// bridgeAddress picks a free address of the bridge's subnet.
func bridgeAddress(used map[string]bool) (string, error) {
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

// freePort picks a dynamic port that nobody has.
func freePort(host string, used map[int]bool) (int, error) {
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

// hostAddress is the address that the host uses towards the world; loopback
// without a default route.
func hostAddress() string {
	conn, err := net.Dial("udp4", "192.0.2.1:9") // TEST-NET-1: nothing is sent
	if err != nil {
		return "127.0.0.1"
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// forwarder carries a host port to an alloc's address, in place of the NAT
// rules of Nomad's CNI plugins.
type forwarder struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// forward starts a forwarder from listen to target.
func forward(listen, target string) (*forwarder, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &forwarder{cancel: cancel}
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

func (f *forwarder) carry(ctx context.Context, in net.Conn, target string) {
	defer in.Close()
	out, err := net.DialTimeout("tcp", target, 5*time.Second)
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

func (f *forwarder) stop() {
	f.cancel()
	f.wg.Wait()
}
