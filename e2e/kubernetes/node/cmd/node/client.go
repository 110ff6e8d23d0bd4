package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// client speaks the few words of Kubernetes' API that a node takes.
type client struct {
	server string
	http   *http.Client
}

func connect(api API) (*client, error) {
	pair, err := tls.LoadX509KeyPair(api.Certificate, api.Key)
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(api.Authority)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", api.Authority)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS12}
	transport := &http.Transport{TLSClientConfig: config, ResponseHeaderTimeout: 10 * time.Second}
	return &client{server: api.Server, http: &http.Client{Transport: transport}}, nil
}

func (c *client) do(ctx context.Context, method, path, kind string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode/100 != 2 {
		defer answer.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		return nil, &refusal{answer.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, path, answer.Status, text)}
	}
	return answer, nil
}

func (c *client) ready(ctx context.Context) error {
	answer, err := c.do(ctx, http.MethodGet, "/readyz", "", nil)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// create makes an object; one that is there already is left.
func (c *client) create(ctx context.Context, object Object) error {
	answer, err := c.do(ctx, http.MethodPost, object.Path, "application/json", object.Body)
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusConflict {
		return nil
	}
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// up tells why pods could not run yet, if so.
func (c *client) up(ctx context.Context, plan *Plan) error {
	answer, err := c.do(ctx, http.MethodGet, "/api/v1/nodes/"+plan.Hostname, "", nil)
	if err != nil {
		return err
	}
	var node struct {
		Status struct {
			Conditions []struct {
				Type    string `json:"type"`
				Status  string `json:"status"`
				Message string `json:"message"`
			} `json:"conditions"`
		} `json:"status"`
	}
	err = json.NewDecoder(answer.Body).Decode(&node)
	answer.Body.Close()
	if err != nil {
		return err
	}
	why := "it has not said that it is ready"
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" {
			why = condition.Message
			if condition.Status == "True" {
				why = ""
			}
		}
	}
	if why != "" {
		return fmt.Errorf("node %s: %s", plan.Hostname, why)
	}
	// Pods cannot be made before it is there.
	answer, err = c.do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", "", nil)
	if err != nil {
		return err
	}
	answer.Body.Close()
	for _, url := range plan.Answering {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, answer.Status)
		}
	}
	return nil
}

// refusal is an answer that is no success.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }
