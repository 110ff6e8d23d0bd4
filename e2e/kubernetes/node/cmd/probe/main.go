// Command probe is both ends of a check in a cluster: a server that tells what it saw, and clients for HTTP, TLS, TCP
// and DNS that print what they got. It is one static program, so its image holds nothing else.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"time"
)

const usage = `usage:
  probe serve [-listen :8080] [-tls :8443 -cert FILE -key FILE] [-tcp :9000] [-name NAME]
                                                          answer every request with what was seen of it, as JSON
  probe get [CLIENT] [-count 1] [-upload BYTES] [-discard] [-pause 0s] URL
                                                          print the status and the body of each answer
  probe load [CLIENT] [-rate 25] [-clients 1] [-fresh] [-by-certificate] [-duration 5s | -count N] URL
                                                          ask at a steady rate, print who answered how often
  probe call [CLIENT] URL                                 call a method of gRPC in clear, print its status and what came back
  probe stream [CLIENT] [-messages 3] URL                 send messages of gRPC, each after the answer to the one before
  probe websocket [CLIENT] [-messages 3] URL              the same over a websocket
  probe certificate [CLIENT] HOST:PORT                    print the name in the certificate that a server presents
  probe send [-timeout 5s] [-wait] HOST:PORT TEXT         send a line over TCP, print the line that comes back
  probe lookup [-timeout 5s] NAME                         print the addresses of a name
  probe cat FILE                                          print a file
CLIENT: [-timeout 5s] [-header 'N: v'] [-to HOST:PORT] [-ca FILE | -roots PEM] [-cert FILE -key FILE]
`

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	commands := map[string]func([]string) error{
		"serve": serve, "get": get, "load": load, "stream": stream, "websocket": websocket, "certificate": certificate,
		"call": call, "send": send, "lookup": lookup, "cat": cat,
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

// words parses flags; what is left must be so many words.
func words(flags *flag.FlagSet, arguments []string, count int, what string) ([]string, error) {
	_ = flags.Parse(arguments)
	if flags.NArg() != count {
		return nil, fmt.Errorf("%s: %s wanted", flags.Name(), what)
	}
	return flags.Args(), nil
}

func send(arguments []string) error {
	flags := flag.NewFlagSet("send", flag.ExitOnError)
	timeout := flags.Duration("timeout", 5*time.Second, "of all of it")
	wait := flags.Bool("wait", false, "say nothing before the server has spoken")
	given, err := words(flags, arguments, 2, "an address and a text are")
	if err != nil {
		return err
	}
	connection, err := net.DialTimeout("tcp", given[0], *timeout)
	if err != nil {
		return err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(*timeout))
	if *wait {
		if _, err := io.CopyN(os.Stdout, connection, 1); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(connection, given[1]); err != nil {
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
	given, err := words(flags, arguments, 1, "one name is")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, given[0])
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(addresses, "\n"))
	return nil
}

func cat(arguments []string) error {
	given, err := words(flag.NewFlagSet("cat", flag.ExitOnError), arguments, 1, "one file is")
	if err != nil {
		return err
	}
	file, err := os.Open(given[0])
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(os.Stdout, file)
	return err
}
