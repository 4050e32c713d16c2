// gRPC's interoperability service, as an application that a rollout replaces: on SIGTERM it ends as
// -leave says, and it counts the calls that it has begun. With -streams it is a client.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	service "google.golang.org/grpc/interop/grpc_testing"
)

// Grows by one byte for each unary call that begins.
type ledger struct{ file *os.File }

func (l ledger) call(delay time.Duration) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if l.file != nil {
			if _, err := l.file.WriteString("."); err != nil {
				return nil, err
			}
		}
		time.Sleep(delay)
		return next(ctx, request)
	}
}

// How many streams are open.
type open struct{ atomic.Int64 }

func (o *open) stream(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	o.Add(1)
	defer o.Add(-1)
	return next(service, stream)
}

func main() {
	address := flag.String("listen", "127.0.0.1:0", "where to listen")
	leave := flag.String("leave", "graceful", "at SIGTERM: graceful (GOAWAY, calls end) or exit (at once)")
	delay := flag.Duration("delay", 0, "how long a unary call takes")
	book := flag.String("ledger", "", "a file that grows by one byte for each unary call that begins")
	held := flag.String("held", "", "a file that grows at SIGTERM by one byte for each stream that is open")
	through := flag.String("streams", "", "the address to open streams to, as a client")
	authority := flag.String("authority", "", "of the server at -streams; none: no TLS")
	count := flag.Int("count", 10, "how many streams of each kind")
	atOnce := flag.Int("at-once", 10, "how many streams at a time")
	flag.Parse()
	if *through != "" {
		if err := streams(*through, *authority, *count, *atOnce); err != nil {
			log.Fatal(err)
		}
		return
	}

	var calls ledger
	if *book != "" {
		calls.file = appended(*book)
	}
	socket, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	var running open
	server := grpc.NewServer(grpc.UnaryInterceptor(calls.call(*delay)), grpc.StreamInterceptor(running.stream))
	service.RegisterTestServiceServer(server, interop.NewTestServer())

	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		if *held != "" {
			if _, err := appended(*held).WriteString(strings.Repeat(".", int(running.Load()))); err != nil {
				log.Fatal(err)
			}
		}
		if *leave == "exit" {
			os.Exit(0)
		}
		server.GracefulStop()
	}()
	if err := server.Serve(socket); err != nil {
		log.Fatal(err)
	}
}

func appended(path string) *os.File {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	return file
}
