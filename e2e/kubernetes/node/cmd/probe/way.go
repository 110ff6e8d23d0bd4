package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// way is how a client reaches a server.
type way struct {
	to    string
	roots string
	fresh bool
}

func (w *way) flags(flags *flag.FlagSet) {
	flags.StringVar(&w.to, "to", "", "HOST:PORT to connect to, whatever the URL says")
	flags.StringVar(&w.roots, "roots", "", "certificates (PEM) to trust, instead of the system's")
}

// transport makes connections that way; fresh ones for each request if so wanted.
func (w *way) transport() (*http.Transport, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 1, DisableKeepAlives: w.fresh}
	if w.to != "" {
		dialer := &net.Dialer{}
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, w.to)
		}
	}
	if w.roots != "" {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(w.roots)) {
			return nil, errors.New("no certificate in -roots")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	return transport, nil
}

// certificate is the common name of what a server showed.
func certificate(answer *http.Response) string {
	if answer.TLS == nil || len(answer.TLS.PeerCertificates) == 0 {
		return ""
	}
	return answer.TLS.PeerCertificates[0].Subject.CommonName
}

// frame is a message of gRPC, not compressed.
func frame(message []byte) []byte {
	out := make([]byte, 5, 5+len(message))
	binary.BigEndian.PutUint32(out[1:], uint32(len(message)))
	return append(out, message...)
}

// call asks a method of gRPC over HTTP/2 in clear, prints its status and the message that came back.
func call(arguments []string) error {
	flags := flag.NewFlagSet("call", flag.ExitOnError)
	timeout := flags.Duration("timeout", 5*time.Second, "of all of it")
	var way way
	way.flags(flags)
	_ = flags.Parse(arguments)
	if flags.NArg() != 1 {
		return errors.New("one URL is wanted, with /PACKAGE.SERVICE/METHOD")
	}
	transport, err := way.transport()
	if err != nil {
		return err
	}
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetUnencryptedHTTP2(true)
	request, err := http.NewRequest(http.MethodPost, flags.Arg(0), bytes.NewReader(frame(nil)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	answer, err := (&http.Client{Timeout: *timeout, Transport: transport}).Do(request)
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
	if len(body) >= 5 {
		body = body[5:]
	}
	fmt.Printf("%s %s\n", status, body)
	return nil
}
