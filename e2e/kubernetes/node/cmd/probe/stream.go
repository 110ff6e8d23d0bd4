package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net/http"
	"time"
)

// gRPC by hand: messages with five bytes before them, and a status in the trailers.

const grpcType = "application/grpc"

func writeMessage(to io.Writer, message []byte) error {
	head := make([]byte, 5)
	binary.BigEndian.PutUint32(head[1:], uint32(len(message)))
	_, err := to.Write(append(head, message...))
	return err
}

func readMessage(from io.Reader) ([]byte, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || length > 1<<20 {
		return nil, fmt.Errorf("a message that begins with %x", head)
	}
	message := make([]byte, length)
	_, err := io.ReadFull(from, message)
	return message, err
}

// answerMessages calls back for each message until the client ends its side; the status is the last thing said.
func answerMessages(w http.ResponseWriter, r *http.Request, answer func([]byte) []byte) {
	w.Header().Set("Content-Type", grpcType)
	w.Header().Set("Trailer", "Grpc-Status")
	control := http.NewResponseController(w)
	_ = control.Flush()
	status := "0"
	for {
		message, err := readMessage(r.Body)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = writeMessage(w, answer(message))
		}
		if err == nil {
			err = control.Flush()
		}
		if err != nil {
			status = "2"
			break
		}
	}
	w.Header().Set("Grpc-Status", status)
}

func serveStream(w http.ResponseWriter, r *http.Request) {
	answerMessages(w, r, func(message []byte) []byte { return message })
}

// serveHealth says that all is well, as the kubelet's probes of gRPC ask: field 1 of the answer is SERVING.
func serveHealth(w http.ResponseWriter, r *http.Request) {
	answerMessages(w, r, func([]byte) []byte { return []byte{0x08, 0x01} })
}

func stream(arguments []string) error {
	flags := flag.NewFlagSet("stream", flag.ExitOnError)
	messages := flags.Int("messages", 3, "messages to send")
	var own Client
	own.flags(flags, 5*time.Second)
	own.unencryptedTwo = true
	given, err := words(flags, arguments, 1, "one URL is")
	if err != nil {
		return err
	}
	client, err := own.http()
	if err != nil {
		return err
	}
	reading, writing := io.Pipe()
	request, err := own.request(http.MethodPost, given[0], reading)
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
	if answer.StatusCode != http.StatusOK || answer.ProtoMajor != 2 {
		return fmt.Errorf("%s %s, %v", answer.Proto, answer.Status, answer.Header)
	}
	err = takeTurns(*messages, func(text string) (string, error) {
		if err := writeMessage(writing, []byte(text)); err != nil {
			return "", err
		}
		back, err := readMessage(answer.Body)
		return string(back), err
	})
	if err != nil {
		return err
	}
	_ = writing.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	fmt.Printf("grpc-status %s\n", answer.Trailer.Get("Grpc-Status"))
	return nil
}
