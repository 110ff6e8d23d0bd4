// Command probe is both ends of a check in a cluster: a server that tells what it saw, and clients for HTTP, TCP and DNS
// that print what they got. It is one static program, so its image holds nothing else.
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
	"strings"
	"syscall"
	"time"
)

const usage = `usage:
  probe serve [-listen :8080] [-tcp :9000] [-name NAME]   answer every request with what was seen of it, as JSON
  probe get [-timeout 5s] [-count 1] [-header 'N: v'] [-to HOST:PORT] [-roots PEM] URL  print the status and the body of each answer
  probe call [-timeout 5s] [-to HOST:PORT] URL            call a method of gRPC in clear, print its status and what came back
  probe send [-timeout 5s] HOST:PORT TEXT                 send a line over TCP, print the line that comes back
  probe lookup [-timeout 5s] NAME                         print the addresses of a name
  probe load [-rate 25] [-clients 1] [-duration 5s | -count N] [-to HOST:PORT] [-roots PEM] [-fresh] [-by-certificate] URL
      ask at a steady rate, print who answered how often
  probe cat FILE                                          print a file
`

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	commands := map[string]func([]string) error{
		"serve": serve, "get": get, "send": send, "lookup": lookup, "load": load, "cat": cat, "call": call,
	}
	command, known := commands[os.Args[1]]
	if !known {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := command(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
}

// Seen is what the server tells of a request.
type Seen struct {
	Name    string      `json:"name"`
	Host    string      `json:"host"`
	Method  string      `json:"method"`
	Path    string      `json:"path"`
	Proto   string      `json:"proto"`
	Peer    string      `json:"peer"`
	Headers http.Header `json:"headers"`
	Body    string      `json:"body,omitempty"`
}

func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", ":8080", "address of HTTP/1.1 and HTTP/2 in clear")
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
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		log.Printf("%s %s from %s", r.Method, r.URL, r.RemoteAddr)
		seen := Seen{
			Name: name, Host: r.Host, Method: r.Method, Path: r.URL.String(), Proto: r.Proto, Peer: r.RemoteAddr,
			Headers: r.Header, Body: string(body),
		}
		if r.Header.Get("Content-Type") == "application/grpc" {
			text, _ := json.Marshal(seen)
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = w.Write(frame(text))
			w.Header().Set("Grpc-Status", "0")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(seen)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: *listen, Handler: http.HandlerFunc(handler), Protocols: protocols, ReadHeaderTimeout: 10 * time.Second}
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

func get(arguments []string) error {
	flags := flag.NewFlagSet("get", flag.ExitOnError)
	timeout := flags.Duration("timeout", 5*time.Second, "of each request")
	count := flags.Int("count", 1, "requests, one after the other, each on a connection of its own")
	headers := http.Header{}
	flags.Func("header", "NAME: VALUE, several", func(text string) error {
		name, value, found := strings.Cut(text, ":")
		if !found {
			return fmt.Errorf("no colon in %q", text)
		}
		headers.Add(name, strings.TrimSpace(value))
		return nil
	})
	way := way{fresh: true}
	way.flags(flags)
	_ = flags.Parse(arguments)
	if flags.NArg() != 1 {
		return fmt.Errorf("one URL is wanted")
	}
	transport, err := way.transport()
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: *timeout, Transport: transport}
	for range *count {
		request, err := http.NewRequest(http.MethodGet, flags.Arg(0), nil)
		if err != nil {
			return err
		}
		request.Header = headers.Clone()
		if host := headers.Get("Host"); host != "" {
			request.Host = host
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		fmt.Printf("%d %s\n", answer.StatusCode, strings.TrimSpace(string(body)))
	}
	return nil
}

func send(arguments []string) error {
	flags := flag.NewFlagSet("send", flag.ExitOnError)
	timeout := flags.Duration("timeout", 5*time.Second, "of all of it")
	_ = flags.Parse(arguments)
	if flags.NArg() != 2 {
		return fmt.Errorf("an address and a text are wanted")
	}
	connection, err := net.DialTimeout("tcp", flags.Arg(0), *timeout)
	if err != nil {
		return err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(*timeout))
	if _, err := fmt.Fprintln(connection, flags.Arg(1)); err != nil {
		return err
	}
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	_, err = io.Copy(os.Stdout, connection)
	return err
}

func lookup(arguments []string) error {
	flags := flag.NewFlagSet("lookup", flag.ExitOnError)
	timeout := flags.Duration("timeout", 5*time.Second, "of all tries")
	_ = flags.Parse(arguments)
	if flags.NArg() != 1 {
		return fmt.Errorf("one name is wanted")
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, flags.Arg(0))
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(addresses, "\n"))
	return nil
}

func cat(arguments []string) error {
	if len(arguments) != 1 {
		return fmt.Errorf("one file is wanted")
	}
	file, err := os.Open(arguments[0])
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(os.Stdout, file)
	return err
}
