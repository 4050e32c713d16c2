// The sample application. It exits immediately at SIGTERM, as most programs do.
//
//	VERSION      the response, beside the pod's name
//	DELAY        how long a request takes (10s)
//	NEVER_READY  /healthz always fails
//	LOG_DIR      each request is logged in LOG_DIR/requests.log when it arrives: unix nanoseconds, pod, version, method, id
//
// A request with ?delay=10s takes that long instead. /hash answers with the SHA-256 of the body. /echo is a WebSocket
// that sends each frame back; a frame has up to 125 bytes.
//
// At SIGUSR1 it allocates memory until the kernel kills it.
package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	version, pod := os.Getenv("VERSION"), hostname()
	delay := time.Duration(0)
	if text := os.Getenv("DELAY"); text != "" {
		var err error
		if delay, err = time.ParseDuration(text); err != nil {
			log.Fatalf("DELAY: %v", err)
		}
	}
	var requests *os.File
	if dir := os.Getenv("LOG_DIR"); dir != "" {
		var err error
		// One write for each line, in append mode, because all pods share the file.
		if requests, err = os.OpenFile(filepath.Join(dir, "requests.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
			log.Fatal(err)
		}
	}
	go exhaustMemory()

	http.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		if os.Getenv("NEVER_READY") != "" {
			http.Error(w, "never ready", http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if requests != nil {
			id := r.URL.Query().Get("id")
			if id == "" {
				id = "-"
			}
			if _, err := fmt.Fprintf(requests, "%d %s %s %s %s\n", time.Now().UnixNano(), pod, version, r.Method, id); err != nil {
				log.Fatal(err)
			}
		}
		io.Copy(io.Discard, r.Body)
		takes := delay
		if own, err := time.ParseDuration(r.URL.Query().Get("delay")); err == nil {
			takes = own
		}
		time.Sleep(takes)
		fmt.Fprintf(w, "%s %s\n", version, pod)
	})
	http.HandleFunc("/hash", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%x", sum.Sum(nil))
	})
	http.HandleFunc("/echo", echo)
	log.Fatal(http.ListenAndServe(":8080", nil))
}

func echo(w http.ResponseWriter, r *http.Request) {
	conn, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		log.Print(err)
		return
	}
	defer conn.Close()
	key := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(key[:]))
	for {
		var head [6]byte // the opcode, the length, and the client's mask of four bytes
		if _, err := io.ReadFull(buffered, head[:]); err != nil {
			return
		}
		frame := make([]byte, 2+head[1]&0x7f)
		frame[0], frame[1] = head[0], head[1]&0x7f
		if _, err := io.ReadFull(buffered, frame[2:]); err != nil {
			return
		}
		for i := range frame[2:] {
			frame[2+i] ^= head[2+i%4]
		}
		if _, err := conn.Write(frame); err != nil {
			return
		}
	}
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	return name
}

func exhaustMemory() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	<-signals
	var held [][]byte
	for {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = 1
		}
		held = append(held, block)
		_ = held
	}
}
