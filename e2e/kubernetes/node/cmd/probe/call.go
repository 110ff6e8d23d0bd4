package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"time"
)

// call asks a method of gRPC over HTTP/2 in clear, prints its status and the message that came back.
func call(arguments []string) error {
	flags := flag.NewFlagSet("call", flag.ExitOnError)
	own := Client{unencryptedTwo: true}
	own.flags(flags, 5*time.Second)
	given, err := words(flags, arguments, 1, "one URL, with /PACKAGE.SERVICE/METHOD, is")
	if err != nil {
		return err
	}
	client, err := own.http()
	if err != nil {
		return err
	}
	var message bytes.Buffer
	if err := writeMessage(&message, nil); err != nil {
		return err
	}
	request, err := own.request(http.MethodPost, given[0], &message)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", grpcType)
	request.Header.Set("Te", "trailers")
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	status := answer.Trailer.Get("Grpc-Status")
	if status == "" {
		// Without a message it stands in the head.
		status = answer.Header.Get("Grpc-Status")
	}
	if len(body) > 0 {
		if body, err = readMessage(bytes.NewReader(body)); err != nil {
			return err
		}
	}
	fmt.Printf("%s %s\n", status, body)
	return nil
}
