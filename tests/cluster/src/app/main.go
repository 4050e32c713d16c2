// The sample application. It exits immediately at SIGTERM, as most programs do.
//
//	VERSION      the response, beside the pod's name
//	DELAY        how long a request takes (10s)
//	NEVER_READY  /healthz always fails
//	LOG_DIR      each request is logged in LOG_DIR/requests.log when it arrives: unix nanoseconds, pod, version, method, id
//
// At SIGUSR1 it allocates memory until the kernel kills it.
package main

import (
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
		time.Sleep(delay)
		fmt.Fprintf(w, "%s %s\n", version, pod)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
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
