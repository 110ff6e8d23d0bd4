package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// A part that ended this often within the span will not come up by itself: the node gives up, for all to see.
	restarts = 5
	span     = time.Minute
	pause    = 500 * time.Millisecond
	patience = 3 * time.Minute
)

// supervise returns only with what made it impossible to go on. Parts die with this process: it is their parent.
func supervise(plan *Plan) error {
	if err := furnish(plan); err != nil {
		return err
	}
	if err := os.Setenv("PATH", plan.Path); err != nil {
		return err
	}
	failed := make(chan error)
	if plan.Tied {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			failed <- errors.New("whoever started this node is gone")
		}()
	}
	for _, part := range plan.First {
		go func() { failed <- keep(part, plan.Logs) }()
	}
	go func() {
		if err := second(plan, failed); err != nil {
			failed <- err
		}
	}()
	return <-failed
}

// second starts what needs an API server and images.
func second(plan *Plan, failed chan<- error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := connect(plan.API)
	if err != nil {
		return err
	}
	imported := make(chan error, 1)
	go func() { imported <- importImages(ctx, plan) }()
	if err := until(ctx, "the API server is not ready", func() error { return client.ready(ctx) }); err != nil {
		return err
	}
	log.Print("the API server is ready")
	for _, object := range plan.Objects {
		if err := until(ctx, "cannot make an object at "+object.Path, func() error { return client.create(ctx, object) }); err != nil {
			return err
		}
	}
	if err := <-imported; err != nil {
		return err
	}
	for _, part := range plan.Second {
		go func() { failed <- keep(part, plan.Logs) }()
	}
	pool, err := newPool(plan.LoadBalancers)
	if err != nil {
		return err
	}
	go (&balancers{client: client, pool: pool}).run(context.Background())
	if err := until(ctx, "the cluster does not come up", func() error { return client.up(ctx, plan) }); err != nil {
		return err
	}
	log.Print("the cluster is up")
	return os.WriteFile(plan.Started, nil, 0o644)
}

func importImages(ctx context.Context, plan *Plan) error {
	for _, image := range plan.Images {
		attempt := func() error {
			output, err := exec.CommandContext(ctx, plan.Import[0], append(plan.Import[1:], image)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(output)))
			}
			return nil
		}
		// The first tries meet a containerd that does not listen yet.
		if err := until(ctx, "cannot import "+image, attempt); err != nil {
			return err
		}
	}
	return nil
}

func until(ctx context.Context, what string, attempt func() error) error {
	for {
		err := attempt()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s after %s: %w", what, patience, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// keep runs a part and starts it again when it ends; it returns when that happens too often.
func keep(part Part, logs string) error {
	path := filepath.Join(logs, part.Name+".log")
	var ends []time.Time
	for {
		started := time.Now()
		status := run(part, path)
		now := time.Now()
		log.Printf("%s ended after %s: %s", part.Name, now.Sub(started).Round(time.Millisecond), status)
		ends = append(ends, now)
		for now.Sub(ends[0]) > span {
			ends = ends[1:]
		}
		if len(ends) > restarts {
			return fmt.Errorf("%s ended %d times within %s, the last time with: %s; its log is %s", part.Name, len(ends), span, status, path)
		}
		time.Sleep(pause)
		log.Printf("%s is started again", part.Name)
	}
}

func run(part Part, path string) string {
	output, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err.Error()
	}
	defer output.Close()
	command := exec.Command(part.Command[0], part.Command[1:]...)
	command.Stdout, command.Stderr = output, output
	// A part that is signalled through its group, as the kubelet does with probes, does not meet its neighbours.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Run(); err != nil {
		return err.Error()
	}
	return "exit status 0"
}
