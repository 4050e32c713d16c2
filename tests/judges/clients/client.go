// An endpoint and a client of Go's standard library, for tests/judges/clients.py.
//
//	client serve ADDRESS DELAY                  HTTP/1.1; at SIGTERM it answers what it has begun, and ends
//	client ask URL AUTHORITY REQUESTS AT_ONCE   prints `ok N`, and a line for each request that failed
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var body = bytes.Repeat([]byte("0123456789abcdef"), 64)

func main() {
	if os.Args[1] == "serve" {
		delay, err := time.ParseDuration(os.Args[3])
		if err != nil {
			panic(err)
		}
		serve(os.Args[2], delay)
		return
	}
	requests, _ := strconv.Atoi(os.Args[4])
	atOnce, _ := strconv.Atoi(os.Args[5])
	ask(os.Args[2], os.Args[3], requests, atOnce)
}

func serve(address string, delay time.Duration) {
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		got, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		time.Sleep(delay)
		if request.Method != "POST" {
			got = body
		}
		answer.Header().Set("Content-Length", strconv.Itoa(len(got)))
		answer.Write(got)
	})}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	ended := make(chan bool)
	go func() {
		<-stop
		server.Shutdown(context.Background())
		close(ended)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		panic(err)
	}
	<-ended
}

func ask(url, authority string, requests, atOnce int) {
	pem, err := os.ReadFile(authority)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	var next, ok atomic.Int64
	asker := func(last int) {
		for n := next.Add(1); n <= int64(last); n = next.Add(1) {
			if err := once(client, url, n%2 == 0); err != nil {
				fmt.Println(err)
			} else {
				ok.Add(1)
			}
		}
	}
	// The first alone, so that the others find its connection.
	asker(1)
	next.Store(1)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() { asker(requests) })
	}
	all.Wait()
	fmt.Println("ok", ok.Load())
}

func once(client *http.Client, url string, posts bool) error {
	method, sent := "GET", io.Reader(nil)
	if posts {
		method, sent = "POST", bytes.NewReader(body)
	}
	request, err := http.NewRequest(method, url, sent)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.ProtoMajor != 2 || answer.StatusCode != 200 || !bytes.Equal(got, body) {
		return fmt.Errorf("%s: %s %s, %d bytes", method, answer.Proto, answer.Status, len(got))
	}
	return nil
}
