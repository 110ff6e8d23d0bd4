package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// Client is what clients of HTTP and TLS have in common.
type Client struct {
	timeout              time.Duration
	to, ca, cert, key    string
	roots                string
	headers              http.Header
	keep, unencryptedTwo bool
}

func (c *Client) flags(flags *flag.FlagSet, timeout time.Duration) {
	c.headers = http.Header{}
	flags.DurationVar(&c.timeout, "timeout", timeout, "of each request")
	flags.StringVar(&c.to, "to", "", "address to connect to, instead of that of the URL")
	flags.StringVar(&c.ca, "ca", "", "file of the authorities that are trusted")
	flags.StringVar(&c.roots, "roots", "", "certificates (PEM) of the authorities that are trusted, instead of a file")
	flags.StringVar(&c.cert, "cert", "", "file of the client's certificate")
	flags.StringVar(&c.key, "key", "", "file of its key")
	flags.Func("header", "NAME: VALUE, several", func(text string) error {
		name, value, found := strings.Cut(text, ":")
		if !found {
			return fmt.Errorf("no colon in %q", text)
		}
		c.headers.Add(name, strings.TrimSpace(value))
		return nil
	})
}

func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if c.to != "" {
		address = c.to
	}
	dialer := net.Dialer{Timeout: c.timeout}
	return dialer.DialContext(ctx, network, address)
}

func (c *Client) tls() (*tls.Config, error) {
	config := new(tls.Config)
	text := []byte(c.roots)
	if c.ca != "" {
		var err error
		if text, err = os.ReadFile(c.ca); err != nil {
			return nil, err
		}
	}
	if len(text) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, errors.New("no certificate among the authorities that are to be trusted")
		}
	}
	if c.cert != "" {
		own, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	return config, nil
}

func (c *Client) http() (*http.Client, error) {
	config, err := c.tls()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext: c.dial, TLSClientConfig: config, DisableKeepAlives: !c.keep, MaxIdleConnsPerHost: 1,
	}
	if c.unencryptedTwo {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Timeout: c.timeout, Transport: transport}, nil
}

func (c *Client) request(method, url string, body io.Reader) (*http.Request, error) {
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	request.Header = c.headers.Clone()
	if host := c.headers.Get("Host"); host != "" {
		request.Host = host
	}
	return request, nil
}

func get(arguments []string) error {
	flags := flag.NewFlagSet("get", flag.ExitOnError)
	count := flags.Int("count", 1, "requests, one after the other, each on a connection of its own")
	upload := flags.Int64("upload", 0, "bytes to send, by POST")
	discard := flags.Bool("discard", false, "print how many bytes the body has, not the body")
	pause := flags.Duration("pause", 0, "before the body is read")
	var own Client
	own.flags(flags, 5*time.Second)
	given, err := words(flags, arguments, 1, "one URL is")
	if err != nil {
		return err
	}
	client, err := own.http()
	if err != nil {
		return err
	}
	for range *count {
		method, sent := http.MethodGet, io.Reader(nil)
		if *upload > 0 {
			method, sent = http.MethodPost, io.LimitReader(zeros{}, *upload)
		}
		request, err := own.request(method, given[0], sent)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		time.Sleep(*pause)
		var body bytes.Buffer
		to := io.Writer(&body)
		if *discard {
			to = io.Discard
		}
		length, err := io.Copy(to, answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		text := strings.TrimSpace(body.String())
		if *discard {
			text = fmt.Sprint(length)
		}
		fmt.Printf("%d %s\n", answer.StatusCode, text)
	}
	return nil
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}

func certificate(arguments []string) error {
	flags := flag.NewFlagSet("certificate", flag.ExitOnError)
	var own Client
	own.flags(flags, 5*time.Second)
	given, err := words(flags, arguments, 1, "HOST:PORT is")
	if err != nil {
		return err
	}
	config, err := own.tls()
	if err != nil {
		return err
	}
	if config.ServerName, _, err = net.SplitHostPort(given[0]); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), own.timeout)
	defer cancel()
	raw, err := own.dial(ctx, "tcp", given[0])
	if err != nil {
		return err
	}
	defer raw.Close()
	connection := tls.Client(raw, config)
	if err := connection.HandshakeContext(ctx); err != nil {
		return err
	}
	fmt.Println(connection.ConnectionState().PeerCertificates[0].Subject.CommonName)
	return nil
}
