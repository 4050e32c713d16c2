package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	service "google.golang.org/grpc/interop/grpc_testing"
)

const (
	messages = 20
	between  = 100 * time.Millisecond
)

// The size of a message says which one it is.
func size(message int) int { return 1000 + message }

// The three kinds of streams. Each lasts 2 seconds, and returns what is not whole in it.
var kinds = []struct {
	name string
	run  func(context.Context, service.TestServiceClient) error
}{
	{"server", serverStream},
	{"client", clientStream},
	{"both", bothWays},
}

// Opens so many streams of each kind on one channel, `atOnce` at a time, and prints a line for each
// kind: its name, streams, failed. A line that begins with a space says how one failed.
func streams(address, authority string, count, atOnce int) error {
	trust := insecure.NewCredentials()
	if authority != "" {
		pem, err := os.ReadFile(authority)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		trust = credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"})
	}
	channel, err := grpc.NewClient(address, grpc.WithTransportCredentials(trust))
	if err != nil {
		return err
	}
	defer channel.Close()
	client := service.NewTestServiceClient(channel)
	var next atomic.Int64
	failed := make([]atomic.Int64, len(kinds))
	var askers sync.WaitGroup
	for range atOnce {
		askers.Go(func() {
			for n := next.Add(1) - 1; n < int64(count*len(kinds)); n = next.Add(1) - 1 {
				kind := int(n) % len(kinds)
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				if err := kinds[kind].run(ctx, client); err != nil {
					failed[kind].Add(1)
					fmt.Printf(" %s: %v\n", kinds[kind].name, err)
				}
				cancel()
			}
		})
	}
	askers.Wait()
	for n, kind := range kinds {
		fmt.Println(kind.name, count, failed[n].Load())
	}
	return nil
}

func payload(message int) *service.Payload {
	return &service.Payload{Body: make([]byte, size(message))}
}

func serverStream(ctx context.Context, client service.TestServiceClient) error {
	request := &service.StreamingOutputCallRequest{}
	for message := range messages {
		request.ResponseParameters = append(request.ResponseParameters, &service.ResponseParameters{
			Size:       int32(size(message)),
			IntervalUs: int32(between.Microseconds()),
		})
	}
	stream, err := client.StreamingOutputCall(ctx, request)
	if err != nil {
		return err
	}
	for message := range messages {
		if err := receive(stream, message); err != nil {
			return err
		}
	}
	return ended(stream)
}

func clientStream(ctx context.Context, client service.TestServiceClient) error {
	stream, err := client.StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	sum := 0
	for message := range messages {
		if err := stream.Send(&service.StreamingInputCallRequest{Payload: payload(message)}); err != nil {
			return err
		}
		sum += size(message)
		time.Sleep(between)
	}
	answer, err := stream.CloseAndRecv()
	if err == nil && int(answer.GetAggregatedPayloadSize()) != sum {
		return fmt.Errorf("%d of %d bytes came", answer.GetAggregatedPayloadSize(), sum)
	}
	return err
}

func bothWays(ctx context.Context, client service.TestServiceClient) error {
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for message := range messages {
		asked := &service.ResponseParameters{Size: int32(size(message))}
		request := &service.StreamingOutputCallRequest{
			ResponseParameters: []*service.ResponseParameters{asked},
			Payload:            payload(message),
		}
		if err := stream.Send(request); err != nil {
			return err
		}
		if err := receive(stream, message); err != nil {
			return err
		}
		time.Sleep(between)
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return ended(stream)
}

type receiver interface {
	Recv() (*service.StreamingOutputCallResponse, error)
}

func receive(stream receiver, message int) error {
	answer, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("message %d: %w", message, err)
	}
	if got := len(answer.GetPayload().GetBody()); got != size(message) {
		return fmt.Errorf("message %d has %d bytes", message, got)
	}
	return nil
}

func ended(stream receiver) error {
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("the end: %v", err)
	}
	return nil
}
