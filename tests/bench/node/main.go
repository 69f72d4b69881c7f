// Command node measures one server node of atoll beside the same upstream components as separate processes on etcd, in the same lab,
// and writes the result to docs/BENCHMARKS.md. scripts/bench-node runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/tests/lab"
)

// subject is one of the two things that are measured.
type subject struct {
	name     string
	binary   string
	programs string // folder to copy to /var/lib/peer; empty for none
}

// figures are the results for one subject. Times are medians over the runs.
type figures struct {
	ready, pod, restart time.Duration
	pss, anon           float64 // MiB
	cpu                 float64 // percent of one core
	written, flushes    float64 // MiB a minute, flushes a second
	processes           int
}

func main() {
	atoll := flag.String("atoll", "bin/atoll", "the atoll to measure")
	peer := flag.String("peer", "out/bench/peer", "the program that starts the separate processes")
	programs := flag.String("programs", "out/bench/programs", "their folder")
	runs := flag.Int("runs", 5, "starts of each, alternating")
	settle := flag.Duration("settle", 5*time.Minute, "time between Ready and the reading of memory")
	idle := flag.Duration("idle", 2*time.Minute, "time over which CPU and disk are read after that")
	out := flag.String("out", "out/bench/node.md", "where the table is written")
	flag.Parse()
	err := run(context.Background(), []subject{{"atoll", *atoll, ""}, {"separate processes on etcd", *peer, *programs}}, *runs, *settle, *idle, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, subjects []subject, runs int, settle, idle time.Duration, out string) error {
	starts := make([][]figures, len(subjects))
	for i := range runs {
		for j, s := range subjects {
			last := i == runs-1
			f, err := measure(ctx, s, last, settle, idle)
			if err != nil {
				return fmt.Errorf("%s, run %d: %w", s.name, i+1, err)
			}
			fmt.Fprintf(os.Stderr, "%-28s run %d: ready %.2f s, first pod %.2f s, restart %.2f s, %.0f MiB\n", s.name, i+1, f.ready.Seconds(), f.pod.Seconds(), f.restart.Seconds(), f.pss)
			starts[j] = append(starts[j], f)
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "| | %s | %s |\n|---|---|---|\n", subjects[0].name, subjects[1].name)
	row := func(name, format string, get func([]figures) float64) {
		fmt.Fprintf(&table, "| %s | "+format+" | "+format+" |\n", name, get(starts[0]), get(starts[1]))
	}
	seconds := func(get func(figures) time.Duration) func([]figures) float64 {
		return func(fs []figures) float64 {
			var all []time.Duration
			for _, f := range fs {
				all = append(all, get(f))
			}
			slices.Sort(all)
			return all[len(all)/2].Seconds()
		}
	}
	final := func(get func(figures) float64) func([]figures) float64 {
		return func(fs []figures) float64 { return get(fs[len(fs)-1]) }
	}
	row("empty disk to node Ready, s", "%.1f", seconds(func(f figures) time.Duration { return f.ready }))
	row("empty disk to first pod Running, s", "%.1f", seconds(func(f figures) time.Duration { return f.pod }))
	row("restart to Ready, s", "%.1f", seconds(func(f figures) time.Duration { return f.restart }))
	row("memory, Pss of all processes without pods, MiB", "%.0f", final(func(f figures) float64 { return f.pss }))
	row("of that anonymous, MiB", "%.0f", final(func(f figures) float64 { return f.anon }))
	row("processes", "%.0f", final(func(f figures) float64 { return float64(f.processes) }))
	row("CPU at idle, % of one core", "%.1f", final(func(f figures) float64 { return f.cpu }))
	row("written to the disk at idle, MiB a minute", "%.2f", final(func(f figures) float64 { return f.written }))
	row("flushes of the disk at idle, per second", "%.2f", final(func(f figures) float64 { return f.flushes }))
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(table.String()), 0o644)
}

// measure starts one node on an empty disk of its own and takes the figures; those at idle only when asked.
func measure(ctx context.Context, s subject, atIdle bool, settle, idle time.Duration) (f figures, err error) {
	root, err := lab.Repository()
	if err != nil {
		return f, err
	}
	command := filepath.Join(root, "out", "bin", "lab")
	if err := lab.BuildCommand(ctx, root, command); err != nil {
		return f, err
	}
	dir := filepath.Join(root, "out", "bench", "lab")
	l, err := lab.Create(ctx, lab.Options{Dir: dir, ID: lab.AnyID, Binary: s.binary, Command: command, DiskMB: 4096, Images: []string{}, Bound: true})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, l.Down(ctx)) }()
	site := l.Site(1)
	n := site.Node(1)
	if err := n.PowerOn(ctx); err != nil {
		return f, err
	}
	if err := copyPrograms(n, s.programs); err != nil {
		return f, err
	}
	began := time.Now()
	if err := n.Start(ctx); err != nil {
		return f, err
	}
	running := make(chan time.Time, 1)
	failed := make(chan error, 1)
	go func() {
		at, err := firstPod(ctx, site)
		running <- at
		failed <- err
	}()
	if err := n.WaitReady(ctx); err != nil {
		return f, err
	}
	f.ready = time.Since(began)
	f.pod = (<-running).Sub(began)
	if err := <-failed; err != nil {
		return f, err
	}
	if atIdle {
		if err := f.readIdle(ctx, site, n, settle, idle); err != nil {
			return f, err
		}
	}
	if err := n.Stop(ctx); err != nil {
		return f, fmt.Errorf("stop: %w", err)
	}
	began = time.Now()
	if err := n.Start(ctx); err != nil {
		return f, err
	}
	if err := n.WaitReady(ctx); err != nil {
		return f, err
	}
	f.restart = time.Since(began)
	return f, nil
}

func copyPrograms(n *lab.Node, folder string) error {
	if folder == "" {
		return nil
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return err
		}
		if err := n.WriteFile("/var/lib/peer/"+e.Name(), data, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// readIdle reads memory after a while, then CPU and disk over a while.
func (f *figures) readIdle(ctx context.Context, site *lab.Site, n *lab.Node, settle, idle time.Duration) error {
	if err := deletePod(ctx, site); err != nil {
		return err
	}
	time.Sleep(settle)
	pids, err := parts(n)
	if err != nil {
		return err
	}
	f.processes = len(pids)
	for _, pid := range pids {
		pss, anon, err := memory(pid)
		if err != nil {
			return err
		}
		f.pss, f.anon = f.pss+pss, f.anon+anon
	}
	loop, err := disk(n)
	if err != nil {
		return err
	}
	cpu0, disk0, t0 := cpuOf(pids), statOf(loop), time.Now()
	time.Sleep(idle)
	cpu1, disk1, took := cpuOf(pids), statOf(loop), time.Since(t0)
	f.cpu = 100 * (cpu1 - cpu0) / took.Seconds()
	f.written = float64(disk1.sectors-disk0.sectors) / 2048 / took.Minutes()
	f.flushes = float64(disk1.flushes-disk0.flushes) / took.Seconds()
	return nil
}

// parts lists the node's processes without pods: not the shims, nor what runs in containers.
func parts(n *lab.Node) ([]int, error) {
	pids, err := n.Processes()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pids, func(pid int) bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return true
		}
		comm := strings.TrimSpace(string(name))
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return strings.HasPrefix(comm, "containerd-shim") || comm == "pause" || filepath.Base(exe) == "lab" || strings.HasPrefix(comm, "lab")
	}), nil
}

func memory(pid int) (pss, anon float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "Pss:":
			pss = kb / 1024
		case "Pss_Anon:":
			anon = kb / 1024
		}
	}
	return pss, anon, nil
}

// cpuOf adds up the seconds of CPU that the processes have used.
func cpuOf(pids []int) float64 {
	const ticksPerSecond = 100
	var sum float64
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.ParseFloat(fields[11], 64)
		system, _ := strconv.ParseFloat(fields[12], 64)
		sum += (user + system) / ticksPerSecond
	}
	return sum
}

// diskStat is what the block layer counted for the node's own disk.
type diskStat struct{ sectors, flushes int64 }

func statOf(loop string) diskStat {
	data, err := os.ReadFile("/sys/block/" + loop + "/stat")
	if err != nil {
		return diskStat{}
	}
	fields := strings.Fields(string(data))
	at := func(i int) int64 {
		if i >= len(fields) {
			return 0
		}
		v, _ := strconv.ParseInt(fields[i], 10, 64)
		return v
	}
	return diskStat{sectors: at(6), flushes: at(15)}
}

// disk finds the loop device of the node's disk.
func disk(n *lab.Node) (string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(data), "/"+n.Hostname()+"/") && strings.Contains(string(data), "/bench/") {
			return strings.Split(file, "/")[3], nil
		}
	}
	return "", errors.New("the node has no disk of its own")
}
