// A server and a client of Go's standard library, for tests/proxy/real.rs.
//
//	peer serve             prints its port
//	peer ask HOST PORT     prints `asked N`
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
)

var body = make([]byte, 102400)

func main() {
	for at := range body {
		body[at] = byte(at)
	}
	if os.Args[1] == "serve" {
		serve()
	} else {
		ask("http://" + net.JoinHostPort(os.Args[2], os.Args[3]))
	}
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		switch {
		case request.Method == "POST":
			got, _ := io.ReadAll(request.Body)
			answer.Header().Set("Content-Length", strconv.Itoa(len(got)))
			answer.Write(got)
		case request.URL.Path == "/chunked":
			answer.Write(body[:50000])
			answer.(http.Flusher).Flush()
			answer.Write(body[50000:])
		case request.URL.Path == "/until-close":
			answer.Header().Set("Connection", "close")
			answer.Header().Set("Transfer-Encoding", "identity")
			answer.Write(body)
		default:
			answer.Header().Set("Content-Length", strconv.Itoa(len(body)))
			answer.Write(body)
		}
	}))
}

func ask(base string) {
	steps := []struct {
		method, path string
		body         io.Reader
	}{
		{"GET", "/counted", nil},
		{"GET", "/chunked", nil},
		{"HEAD", "/counted", nil},
		{"POST", "/echo", bytes.NewReader(body)},
		{"POST", "/echo", io.MultiReader(bytes.NewReader(body))},
		{"GET", "/until-close", nil},
		{"GET", "/counted", nil},
	}
	for _, step := range steps {
		request, err := http.NewRequest(step.method, base+step.path, step.body)
		if err != nil {
			panic(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			panic(err)
		}
		got, err := io.ReadAll(answer.Body)
		if err != nil {
			panic(err)
		}
		answer.Body.Close()
		if answer.StatusCode != 200 || step.method != "HEAD" && !bytes.Equal(got, body) {
			panic(fmt.Sprint(step.method, step.path, answer.StatusCode, len(got)))
		}
	}
	fmt.Println("asked", len(steps))
}
