// gRPC's interoperability service, as an application that a rollout replaces: on SIGTERM it ends as
// -leave says, and it counts the calls that it has begun.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
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

func main() {
	address := flag.String("listen", "127.0.0.1:0", "where to listen")
	leave := flag.String("leave", "graceful", "at SIGTERM: graceful (GOAWAY, calls end) or exit (at once)")
	delay := flag.Duration("delay", 0, "how long a unary call takes")
	book := flag.String("ledger", "", "a file that grows by one byte for each unary call that begins")
	flag.Parse()

	var calls ledger
	if *book != "" {
		file, err := os.OpenFile(*book, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			log.Fatal(err)
		}
		calls.file = file
	}
	socket, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(calls.call(*delay)))
	service.RegisterTestServiceServer(server, interop.NewTestServer())

	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		if *leave == "exit" {
			os.Exit(0)
		}
		server.GracefulStop()
	}()
	if err := server.Serve(socket); err != nil {
		log.Fatal(err)
	}
}
