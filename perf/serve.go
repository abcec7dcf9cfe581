package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The ports of the load's server.
const (
	echoPort    = 7000 // sends back what it gets
	sinkPort    = 7001 // takes all until the end, and then says how much, in 8 bytes
	skippedPort = 7100 // as echoPort, on both skip lists
)

// serve is the load's server, on all addresses of its pod.
func serve([]string) error {
	failed := make(chan error)
	for port, handle := range map[int]func(net.Conn) error{echoPort: echo, sinkPort: sink, skippedPort: echo} {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		go func() { failed <- accept(l, handle) }()
	}
	return <-failed
}

func accept(l net.Listener, handle func(net.Conn) error) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			// A client that is cut off is the client's failure to report.
			_ = errors.Join(handle(c), c.Close())
		}()
	}
}

func echo(c net.Conn) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return err
		}
	}
}

func sink(c net.Conn) error {
	buf := make([]byte, 256<<10)
	var total uint64
	for {
		n, err := c.Read(buf)
		total += uint64(n)
		if errors.Is(err, io.EOF) {
			return binary.Write(c, binary.BigEndian, total)
		}
		if err != nil {
			return err
		}
	}
}
