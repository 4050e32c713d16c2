// Reads streams of requests with Go's net/http server. Input: one stream in hex on each line. Output: one line
// for each stream, with the method, target, host and body of each request that the handler saw, in hex, and "!"
// if the server refused or missed something.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

type conn struct {
	in     *bytes.Reader
	out    bytes.Buffer
	closed chan struct{}
}

func (c *conn) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *conn) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *conn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *conn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
func (c *conn) Close() error {
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return nil
}

type listener chan net.Conn

func (l listener) Accept() (net.Conn, error) { return <-l, nil }
func (l listener) Close() error              { return nil }
func (l listener) Addr() net.Addr            { return &net.TCPAddr{} }

func main() {
	if len(os.Args) > 1 {
		readResponses()
		return
	}
	var seen []string
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			h := hex.EncodeToString
			seen = append(seen, h([]byte(r.Method))+","+h([]byte(r.RequestURI))+","+h([]byte(r.Host))+","+h(body))
		}
	})
	connections := make(listener)
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0), DisableGeneralOptionsHandler: true}
	go server.Serve(connections)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		stream, _ := hex.DecodeString(lines.Text())
		seen = nil
		c := &conn{in: bytes.NewReader(stream), closed: make(chan struct{})}
		connections <- c
		<-c.closed
		refused := ""
		if bytes.Contains(c.out.Bytes(), []byte("HTTP/1.1 4")) || bytes.Contains(c.out.Bytes(), []byte("HTTP/1.1 5")) {
			refused = "!"
		}
		fmt.Fprintln(out, strings.Join(seen, ";")+refused)
	}
}
