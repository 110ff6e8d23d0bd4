package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/netip"
	"time"
)

type service struct {
	Metadata struct {
		Namespace       string `json:"namespace"`
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Spec struct {
		Type string `json:"type"`
		// A class names another implementation, which alone may serve the Service.
		LoadBalancerClass *string `json:"loadBalancerClass"`
		LoadBalancerIP    string  `json:"loadBalancerIP"`
	} `json:"spec"`
	Status struct {
		LoadBalancer struct {
			Ingress []struct {
				IP string `json:"ip"`
			} `json:"ingress"`
		} `json:"loadBalancer"`
	} `json:"status"`
}

func (s *service) key() string { return s.Metadata.Namespace + "/" + s.Metadata.Name }
func (s *service) wanted() bool {
	return s.Spec.Type == "LoadBalancer" && s.Spec.LoadBalancerClass == nil
}

func (s *service) addresses() []string {
	var all []string
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		all = append(all, ingress.IP)
	}
	return all
}

// pool is the addresses and who has them.
type pool struct {
	all    []string
	holder map[string]string
}

func newPool(ends [2]string) (*pool, error) {
	first, err := netip.ParseAddr(ends[0])
	if err != nil {
		return nil, err
	}
	last, err := netip.ParseAddr(ends[1])
	if err != nil {
		return nil, err
	}
	p := &pool{holder: map[string]string{}}
	for address := first; address.Compare(last) <= 0; address = address.Next() {
		p.all = append(p.all, address.String())
	}
	return p, nil
}

// hold gives the service its own address again, the one it asks for if that is free, or any.
func (p *pool) hold(key, asked string) (string, bool) {
	free := ""
	for _, address := range p.all {
		switch holder := p.holder[address]; {
		case holder == key:
			return address, true
		case holder == "" && (free == "" || address == asked):
			free = address
		}
	}
	if free == "" {
		return "", false
	}
	p.holder[free] = key
	return free, true
}

// claim notes an address that a service already shows; false: it is not ours or another's.
func (p *pool) claim(key, address string) bool {
	for _, own := range p.all {
		if own == address && (p.holder[own] == "" || p.holder[own] == key) {
			p.holder[own] = key
			return true
		}
	}
	return false
}

func (p *pool) release(key string) {
	for address, holder := range p.holder {
		if holder == key {
			delete(p.holder, address)
		}
	}
}

// balancers gives each Service of type LoadBalancer an address. That the address is answered is kube-proxy's work.
type balancers struct {
	client *client
	pool   *pool
}

func (b *balancers) run(ctx context.Context) {
	for {
		if err := b.follow(ctx); err != nil {
			log.Printf("load balancers: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// follow lists and then watches until the watch ends, as it does from time to time.
func (b *balancers) follow(ctx context.Context) error {
	answer, err := b.client.do(ctx, http.MethodGet, "/api/v1/services", "", nil)
	if err != nil {
		return err
	}
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Items []service `json:"items"`
	}
	err = json.NewDecoder(answer.Body).Decode(&list)
	answer.Body.Close()
	if err != nil {
		return err
	}
	b.pool.holder = map[string]string{}
	// What is shown already is kept before anything new is given.
	for _, s := range list.Items {
		for _, address := range s.addresses() {
			if s.wanted() {
				b.pool.claim(s.key(), address)
			}
		}
	}
	for i := range list.Items {
		if err := b.settle(ctx, &list.Items[i]); err != nil {
			return err
		}
	}
	return b.watch(ctx, list.Metadata.ResourceVersion)
}

func (b *balancers) watch(ctx context.Context, version string) error {
	path := "/api/v1/services?watch=1&timeoutSeconds=300&resourceVersion=" + version
	answer, err := b.client.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	events := json.NewDecoder(bufio.NewReader(answer.Body))
	for {
		var event struct {
			Type   string  `json:"type"`
			Object service `json:"object"`
		}
		switch err := events.Decode(&event); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch event.Type {
		case "ERROR":
			return nil // The version is too old: list again.
		case "DELETED":
			b.pool.release(event.Object.key())
		default:
			if err := b.settle(ctx, &event.Object); err != nil {
				return err
			}
		}
	}
}

// settle makes the status of one Service what it should be.
func (b *balancers) settle(ctx context.Context, s *service) error {
	key, shown := s.key(), s.addresses()
	if !s.wanted() {
		b.pool.release(key)
		return nil // Whoever changes the type away has the API server clear the status.
	}
	address, found := b.pool.hold(key, s.Spec.LoadBalancerIP)
	if !found {
		log.Printf("load balancers: no address is left for %s: delete a Service of type LoadBalancer", key)
		return nil
	}
	if len(shown) == 1 && shown[0] == address {
		return nil
	}
	ingress := []map[string]string{{"ip": address, "ipMode": "VIP"}}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": ingress}}})
	if err != nil {
		return err
	}
	path := "/api/v1/namespaces/" + s.Metadata.Namespace + "/services/" + s.Metadata.Name + "/status"
	answer, err := b.client.do(ctx, http.MethodPatch, path, "application/merge-patch+json", patch)
	if err != nil {
		return err
	}
	log.Printf("load balancers: %s has %s", key, address)
	return answer.Body.Close()
}
