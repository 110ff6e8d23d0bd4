package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// Tally is what came of the requests of a load.
type Tally struct {
	Sent   int            `json:"sent"`
	Failed int            `json:"failed"`
	By     map[string]int `json:"by"`
	Errors map[string]int `json:"errors,omitempty"`
}

// load asks at a steady rate, and counts who answered.
func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	rate := flags.Float64("rate", 25, "requests a second of each client")
	clients := flags.Int("clients", 1, "clients, each with a connection of its own")
	duration := flags.Duration("duration", 5*time.Second, "how long it goes on")
	count := flags.Int("count", 0, "requests of each client, instead of a duration")
	fresh := flags.Bool("fresh", false, "a connection of its own for each request")
	byCertificate := flags.Bool("by-certificate", false, "count by the name in the server's certificate")
	var own Client
	own.flags(flags, 10*time.Second)
	given, err := words(flags, arguments, 1, "one URL is")
	if err != nil {
		return err
	}
	own.keep = !*fresh
	tally := Tally{By: map[string]int{}, Errors: map[string]int{}}
	var lock sync.Mutex
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), *duration)
	if *count > 0 {
		ctx, cancel = context.WithCancel(context.Background())
	}
	defer cancel()
	for range *clients {
		client, err := own.http()
		if err != nil {
			return err
		}
		all.Add(1)
		go func() {
			defer all.Done()
			tick := time.NewTicker(time.Duration(float64(time.Second) / *rate))
			defer tick.Stop()
			for done := 0; *count == 0 || done < *count; done++ {
				who, err := ask(client, &own, given[0], *byCertificate)
				lock.Lock()
				tally.Sent++
				if err != nil {
					tally.Failed++
					tally.Errors[err.Error()]++
				} else {
					tally.By[who]++
				}
				lock.Unlock()
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(tally)
}

// ask returns the name by which the server calls itself, or its certificate does.
func ask(client *http.Client, own *Client, url string, byCertificate bool) (string, error) {
	request, err := own.request(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%d %s", answer.StatusCode, body)
	}
	if byCertificate {
		if answer.TLS == nil || len(answer.TLS.PeerCertificates) == 0 {
			return "", errors.New("the server showed no certificate")
		}
		return answer.TLS.PeerCertificates[0].Subject.CommonName, nil
	}
	var seen Seen
	if err := json.Unmarshal(body, &seen); err != nil {
		return "", err
	}
	return seen.Name, nil
}
