package netns

import (
	"io"
	"net"
	"testing"
)

func TestBridgeAddressesAreUsedOnce(t *testing.T) {
	if a, err := BridgeAddress(map[string]bool{"172.26.64.2": true}); err != nil || a != "172.26.64.3" {
		t.Errorf("%s, %v", a, err)
	}
}

func TestAForwardedPortReachesItsTarget(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		for {
			conn, err := target.Accept()
			if err != nil {
				return
			}
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	port, err := FreePort("127.0.0.1", map[int]bool{})
	if err != nil {
		t.Fatal(err)
	}
	listen := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String()
	f, err := Forward(listen, target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	f.Stop()
	if conn, err := net.Dial("tcp", listen); err == nil {
		conn.Close()
		t.Error("a stopped forwarder still listens")
	}
}
