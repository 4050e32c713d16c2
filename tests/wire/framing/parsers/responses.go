package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
)

type source struct {
	in    *bytes.Reader
	reset bool
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.in.Read(b)
	if err == io.EOF && s.reset {
		err = syscall.ECONNRESET
	}
	return n, err
}

// Does what read_responses.py does, with the reader of net/http's client.
func readResponses() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	for lines.Scan() {
		words := strings.Split(lines.Text(), " ")
		stream, _ := hex.DecodeString(words[2])
		in := bufio.NewReader(&source{bytes.NewReader(stream), words[1] == "reset"})
		seen, fault := []string{}, ""
		for _, method := range []string{words[0], "GET"} {
			if _, err := in.Peek(1); err == io.EOF {
				break
			}
			status, body, last, err := readResponse(in, method)
			if err != nil {
				fault = "!"
				break
			}
			seen = append(seen, fmt.Sprintf("%d,%s", status, hex.EncodeToString(body)))
			if last {
				break
			}
		}
		fmt.Println(strings.Join(seen, ";") + fault)
	}
}

func readResponse(in *bufio.Reader, method string) (int, []byte, bool, error) {
	for {
		response, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return 0, nil, true, err
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode >= 200 {
			return response.StatusCode, body, response.Close, err
		}
	}
}
