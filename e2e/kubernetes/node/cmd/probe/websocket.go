package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Of RFC 6455 what a check needs: the handshake, and text frames of less than 126 bytes.

const textFrame = 0x81

func acceptance(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func serveWebsocket(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if !has(r.Header, "Connection", "upgrade") || !has(r.Header, "Upgrade", "websocket") || key == "" {
		http.Error(w, "a websocket is wanted", http.StatusUpgradeRequired)
		return
	}
	connection, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer connection.Close()
	fmt.Fprintf(connection, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Accept: %s\r\n\r\n", acceptance(key))
	for {
		text, err := readFrame(buffered.Reader)
		if err != nil {
			return
		}
		if err := writeFrame(connection, text, false); err != nil {
			return
		}
	}
}

func websocket(arguments []string) error {
	flags := flag.NewFlagSet("websocket", flag.ExitOnError)
	messages := flags.Int("messages", 3, "messages to send")
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
	request, err := own.request(http.MethodGet, given[0], nil)
	if err != nil {
		return err
	}
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce)
	key := base64.StdEncoding.EncodeToString(nonce)
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key,
	} {
		request.Header.Set(name, value)
	}
	ctx, cancel := context.WithTimeout(context.Background(), own.timeout)
	defer cancel()
	// Past the client, which would hand out a connection that can only be read.
	answer, err := client.Transport.RoundTrip(request.WithContext(ctx))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("Sec-WebSocket-Accept") != acceptance(key) {
		return fmt.Errorf("no websocket: %s, %v", answer.Status, answer.Header)
	}
	connection, ok := answer.Body.(io.ReadWriter)
	if !ok {
		return errors.New("the connection cannot be written to")
	}
	reader := bufio.NewReader(connection)
	return takeTurns(*messages, func(text string) (string, error) {
		if err := writeFrame(connection, text, true); err != nil {
			return "", err
		}
		return readFrame(reader)
	})
}

// takeTurns sends each message when the one before has come back, and prints what came back.
func takeTurns(count int, turn func(string) (string, error)) error {
	for n := range count {
		sent := fmt.Sprintf("message %d at %s", n+1, time.Now().Format(time.TimeOnly))
		back, err := turn(sent)
		if err != nil {
			return fmt.Errorf("message %d: %w", n+1, err)
		}
		if back != sent {
			return fmt.Errorf("%q came back as %q", sent, back)
		}
		fmt.Println(back)
	}
	return nil
}

func writeFrame(to io.Writer, text string, masked bool) error {
	if len(text) > 125 {
		return errors.New("a message of more than 125 bytes")
	}
	frame := []byte{textFrame, byte(len(text))}
	payload := []byte(text)
	if masked {
		mask := make([]byte, 4)
		_, _ = rand.Read(mask)
		frame[1] |= 0x80
		frame = append(frame, mask...)
		for at := range payload {
			payload[at] ^= mask[at%4]
		}
	}
	_, err := to.Write(append(frame, payload...))
	return err
}

func readFrame(from *bufio.Reader) (string, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(from, head); err != nil {
		return "", err
	}
	if head[0] != textFrame || head[1]&0x7f > 125 {
		return "", fmt.Errorf("a frame that begins with %x", head)
	}
	mask := make([]byte, 4)
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(from, mask); err != nil {
			return "", err
		}
	}
	payload := make([]byte, head[1]&0x7f)
	if _, err := io.ReadFull(from, payload); err != nil {
		return "", err
	}
	for at := range payload {
		payload[at] ^= mask[at%4]
	}
	return string(payload), nil
}
