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

// load asks at a steady rate over connections that stay, and counts who answered.

func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	rate := flags.Float64("rate", 25, "requests a second of each client")
	clients := flags.Int("clients", 1, "clients, each with a connection of its own")
	duration := flags.Duration("duration", 5*time.Second, "how long it goes on")
	count := flags.Int("count", 0, "requests of each client, instead of a duration")
	timeout := flags.Duration("timeout", 10*time.Second, "of each request")
	byCertificate := flags.Bool("by-certificate", false, "count by the name in the server's certificate")
	var way way
	way.flags(flags)
	flags.BoolVar(&way.fresh, "fresh", false, "a connection of its own for each request")
	_ = flags.Parse(arguments)
	if flags.NArg() != 1 {
		return errors.New("one URL is wanted")
	}
	tally := Tally{By: map[string]int{}, Errors: map[string]int{}}
	var lock sync.Mutex
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), *duration)
	if *count > 0 {
		ctx, cancel = context.WithCancel(context.Background())
	}
	defer cancel()
	for range *clients {
		transport, err := way.transport()
		if err != nil {
			return err
		}
		all.Add(1)
		go func() {
			defer all.Done()
			client := &http.Client{Timeout: *timeout, Transport: transport}
			tick := time.NewTicker(time.Duration(float64(time.Second) / *rate))
			defer tick.Stop()
			for done := 0; *count == 0 || done < *count; done++ {
				who, err := ask(client, flags.Arg(0), *byCertificate)
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
func ask(client *http.Client, url string, byCertificate bool) (string, error) {
	answer, err := client.Get(url)
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
		return certificate(answer), nil
	}
	var seen Seen
	if err := json.Unmarshal(body, &seen); err != nil {
		return "", err
	}
	return seen.Name, nil
}
