package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// furnish makes this process's namespaces a machine of its own: nothing that is mounted here is seen outside.
func furnish(plan *Plan) error {
	// Nothing leaks out: before anything else.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot keep mounts private: %w", err)
	}
	// Sockets, states of containers, namespaces of pods, leases of addresses.
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("/run: %w", err)
	}
	for _, name := range []string{"containerd", "netns", "cni", "lock"} {
		if err := os.Mkdir("/run/"+name, 0o755); err != nil {
			return err
		}
	}
	if target, err := os.Readlink("/var/run"); err != nil || filepath.Join("/var", target) != "/run" && target != "/run" {
		if err := bind("/run", "/var/run"); err != nil {
			return err
		}
	}
	for _, folder := range plan.Folders {
		if err := bind(folder.From, folder.To); err != nil {
			return err
		}
	}
	// The kubelet and volumes that containers mount into need it; what is mounted here still stays here.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("cannot share mounts with containers: %w", err)
	}
	if err := pretend(plan.Pretended); err != nil {
		return err
	}
	for name, value := range plan.Sysctls {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return syscall.Sethostname([]byte(plan.Hostname))
}

func bind(from, to string) error {
	for _, folder := range []string{from, to} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot put %s at %s: %w", from, to, err)
	}
	return nil
}

// pretend lays files over kernel settings of the whole machine. The kubelet reads what it wants to find and writes
// nothing; told not to write, it would refuse to start instead.
func pretend(settings map[string]string) error {
	const folder = "/run/settings"
	for name, value := range settings {
		file := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(file, "/proc/sys/"+name, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot lay a file over /proc/sys/%s: %w", name, err)
		}
	}
	return nil
}
