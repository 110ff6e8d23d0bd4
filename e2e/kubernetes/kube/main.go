// Command kube is every part of Kubernetes in one program, so that the code they share is linked once: which part it is
// says the name it is started by, or its first argument.
//
// One process runs one part: the signal handlers of Kubernetes cannot be set twice.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata" // CronJobs name time zones, and the machine may hold none

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var parts = map[string]func(){
	"etcd":           func() { etcdmain.Main(os.Args) },
	"kube-apiserver": func() { run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() {
		run(controllermanager.NewControllerManagerCommand())
	},
	"kube-scheduler": func() { run(scheduler.NewSchedulerCommand()) },
	"kubelet":        func() { run(kubelet.NewKubeletCommand(context.Background())) },
	"kube-proxy":     func() { run(proxy.NewProxyCommand()) },
	"kubectl": func() {
		logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	},
}

func main() {
	part := filepath.Base(os.Args[0])
	if part == "kube" && len(os.Args) > 1 {
		part = os.Args[1]
		os.Args = os.Args[1:]
	}
	start, known := parts[part]
	if !known {
		names := slices.Sorted(maps.Keys(parts))
		fmt.Fprintf(os.Stderr, "%q is no part of Kubernetes: start this as `kube PART`, PART one of %s\n", part, strings.Join(names, ", "))
		os.Exit(2)
	}
	os.Args[0] = part
	start()
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
