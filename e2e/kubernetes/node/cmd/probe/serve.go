package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Seen is what the server tells of a request.
type Seen struct {
	Name       string      `json:"name"`
	Host       string      `json:"host"`
	Method     string      `json:"method"`
	Path       string      `json:"path"`
	Proto      string      `json:"proto"`
	Peer       string      `json:"peer"`
	ServerName string      `json:"serverName,omitempty"`
	Headers    http.Header `json:"headers"`
	Body       string      `json:"body,omitempty"`
	Length     int64       `json:"length"`
}

func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", ":8080", "address of HTTP/1.1 and HTTP/2 in clear")
	secure := flags.String("tls", "", "address of HTTP over TLS")
	cert := flags.String("cert", "", "file of its certificate")
	key := flags.String("key", "", "file of its key")
	echo := flags.String("tcp", "", "address of a server that sends lines back")
	name, _ := os.Hostname()
	flags.StringVar(&name, "name", name, "what it calls itself")
	_ = flags.Parse(arguments)

	if *echo != "" {
		listener, err := net.Listen("tcp", *echo)
		if err != nil {
			return err
		}
		go sendBack(listener, name)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { tell(w, r, name) })
	mux.HandleFunc("/bytes/{count}", sendBytes)
	mux.HandleFunc("/websocket", serveWebsocket)
	mux.HandleFunc("/stream", serveStream)
	mux.HandleFunc("/grpc.health.v1.Health/Check", serveHealth)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: *listen, Handler: mux, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second}
	if *secure != "" {
		over := &http.Server{Addr: *secure, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
		go func() { log.Fatal(over.ListenAndServeTLS(*cert, *key)) }()
	}
	ending, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ended := make(chan struct{})
	go func() {
		<-ending.Done()
		// What is in flight is answered.
		_ = server.Shutdown(context.Background())
		close(ended)
	}()
	log.Printf("%s listens on %s", name, *listen)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	<-ended
	return nil
}

// tell answers with what was seen. Of a large body only the beginning is kept; `?pause=3s` reads it later.
func tell(w http.ResponseWriter, r *http.Request, name string) {
	if pause, err := time.ParseDuration(r.URL.Query().Get("pause")); err == nil {
		time.Sleep(pause)
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	rest, _ := io.Copy(io.Discard, r.Body)
	log.Printf("%s %s from %s", r.Method, r.URL, r.RemoteAddr)
	seen := Seen{
		Name: name, Host: r.Host, Method: r.Method, Path: r.URL.String(), Proto: r.Proto, Peer: r.RemoteAddr,
		Headers: r.Header, Length: int64(len(body)) + rest,
	}
	if rest == 0 {
		seen.Body = string(body)
	}
	if r.TLS != nil {
		seen.ServerName = r.TLS.ServerName
	}
	if r.Header.Get("Content-Type") == grpcType {
		text, _ := json.Marshal(seen)
		w.Header().Set("Content-Type", grpcType)
		w.Header().Set("Trailer", "Grpc-Status")
		_ = writeMessage(w, text)
		w.Header().Set("Grpc-Status", "0")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(seen)
}

func sendBytes(w http.ResponseWriter, r *http.Request) {
	count, err := strconv.ParseInt(r.PathValue("count"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = io.CopyN(w, zeros{}, count)
}

func sendBack(listener net.Listener, name string) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Print(err)
			return
		}
		go func() {
			defer connection.Close()
			fmt.Fprintf(connection, "%s ", name)
			_, _ = io.Copy(connection, connection)
		}()
	}
}

// has tells whether a header with a list names a word.
func has(headers http.Header, name, word string) bool {
	for _, piece := range strings.Split(strings.Join(headers.Values(name), ","), ",") {
		if strings.EqualFold(strings.TrimSpace(piece), word) {
			return true
		}
	}
	return false
}
