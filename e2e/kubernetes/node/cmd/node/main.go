// Command node is the first process of a node of a test cluster: it lives in namespaces of its own (network, mounts,
// processes, host name), starts the parts of Kubernetes there, keeps them running and hands out load balancer addresses.
//
// It is told everything by one file and knows no flag of any part. It runs as two processes: the first only reaps
// orphans and ends with the second, which does the work.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// Plan is the file: what the node is made of.
type Plan struct {
	Hostname string `json:"hostname"`
	// Folders of the cluster that stand in for folders of the machine, in order.
	Folders []Folder `json:"folders"`
	// Values that are to be read under /proc/sys while the machine's own stay as they are.
	Pretended map[string]string `json:"pretended"`
	// Values under /proc/sys of this network namespace.
	Sysctls map[string]string `json:"sysctls"`
	// PATH of all parts.
	Path string `json:"path"`
	// Output of each part goes to NAME.log here.
	Logs string `json:"logs"`
	// Parts that are started at once, and those that need an answering API server and the images.
	First  []Part `json:"first"`
	Second []Part `json:"second"`
	// Archives that are imported before the second parts start, and the program that does it with its arguments.
	Images []string `json:"images"`
	Import []string `json:"import"`
	API    API      `json:"api"`
	// Objects that are made before the second parts start.
	Objects []Object `json:"objects"`
	// What must answer before the cluster counts as up, beside a ready node.
	Answering []string `json:"answering"`
	// Addresses for Services of type LoadBalancer, first to last.
	LoadBalancers [2]string `json:"loadBalancers"`
	// End when standard input ends: who started the node is gone then.
	Tied bool `json:"tied"`
	// Where it is written that the cluster is up, or why the node gave up.
	Started string `json:"started"`
	Failed  string `json:"failed"`
}

// Folder is a bind mount.
type Folder struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Part is a program that is to run as long as the node does.
type Part struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`
}

// API is how to reach the API server.
type API struct {
	Server      string `json:"server"`
	Authority   string `json:"authority"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

// Object is something to be made: where it is posted to, and itself.
type Object struct {
	Path string          `json:"path"`
	Body json.RawMessage `json:"body"`
}

func main() {
	log.SetFlags(log.Ldate | log.Ltime | log.Lmicroseconds)
	if len(os.Args) == 3 && os.Args[1] == "supervise" {
		plan, err := read(os.Args[2])
		if err == nil {
			err = supervise(plan)
			if err != nil {
				// Who waits for the node looks for this file.
				_ = os.WriteFile(plan.Failed, []byte(err.Error()+"\n"), 0o644)
			}
		}
		if err != nil {
			log.Fatal(err)
		}
		return
	}
	if len(os.Args) != 2 || os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "started by `cluster up` as the first process of a node, with its plan: node PLAN.json")
		os.Exit(2)
	}
	os.Exit(reap(os.Args[1]))
}

func read(path string) (*Plan, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	plan := new(Plan)
	if err := json.Unmarshal(text, plan); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return plan, nil
}

// reap waits for every process that ends here, which only the first process can do for orphans, until the supervisor does.
func reap(plan string) int {
	// Without handlers the kernel keeps signals from the first process of a namespace; only these two should end it.
	ending := make(chan os.Signal, 1)
	signal.Notify(ending, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ending
		// The kernel ends everything else in the namespace with this process.
		os.Exit(0)
	}()
	supervisor := exec.Command("/proc/self/exe", "supervise", plan)
	supervisor.Stdin, supervisor.Stdout, supervisor.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := supervisor.Start(); err != nil {
		log.Print(err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			log.Printf("wait: %v", err)
			return 1
		}
		if pid == supervisor.Process.Pid {
			return status.ExitStatus()
		}
	}
}
