// Command hello is the server of the test images. It answers on :8080 (HTTP) and :8081 (TCP echo) and writes a line per request to
// standard output.
//
//	/                      "hello from <hostname>" and the version in $VERSION
//	/healthz               200, or 503 after /sick or when $UNHEALTHY is set
//	/readyz                200 once $READY_AFTER (a duration) has passed
//	/env?name=N            the variable's value; without a name all of them
//	/ip                    the client's address, as seen here
//	/headers               the request's headers
//	/read?path=P           a file
//	/write?path=P&data=D   writes a file and syncs it
//	/burn?cpu=N&for=D      keeps N processors busy
//	/alloc?mb=N&for=D      holds N MiB of memory, touched
//	/sick, /well           what /healthz says
//	/log?line=L            one more line of output
//	/exit?code=N           ends the process
//
// SIGTERM ends it after open requests, or after $GRACE (a duration; default at once). With the argument "once" it prints its
// greeting and ends, for jobs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	out := log.New(os.Stdout, "", log.LstdFlags|log.LUTC|log.Lmicroseconds)
	if len(os.Args) > 1 && os.Args[1] == "once" {
		fmt.Println(greeting())
		return
	}
	if err := run(out); err != nil {
		out.Fatal(err)
	}
}

func run(out *log.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	echo, err := net.Listen("tcp", ":8081")
	if err != nil {
		return err
	}
	go serveEcho(echo, out)
	s := &server{out: out, started: time.Now()}
	web := &http.Server{Addr: ":8080", Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- web.ListenAndServe() }()
	out.Printf("ready as %s", hostname())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace := duration(os.Getenv("GRACE"), 0)
	out.Printf("told to end, in %s", grace)
	time.Sleep(grace) // still serving, like a program that lets load balancers notice
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := web.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	out.Print("ended")
	return nil
}

type server struct {
	out     *log.Logger
	started time.Time
	sick    atomic.Bool
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, greeting()) })
	mux.HandleFunc("/healthz", s.healthz)
	mux.HandleFunc("/readyz", s.readyz)
	mux.HandleFunc("/env", env)
	mux.HandleFunc("/ip", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, host)
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) { _ = r.Header.Write(w) })
	mux.HandleFunc("/read", read)
	mux.HandleFunc("/write", write)
	mux.HandleFunc("/burn", burn)
	mux.HandleFunc("/alloc", alloc)
	mux.HandleFunc("/sick", func(http.ResponseWriter, *http.Request) { s.sick.Store(true) })
	mux.HandleFunc("/well", func(http.ResponseWriter, *http.Request) { s.sick.Store(false) })
	mux.HandleFunc("/log", func(_ http.ResponseWriter, r *http.Request) { s.out.Print(r.FormValue("line")) })
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		s.out.Print("told to exit")
		os.Exit(number(r.FormValue("code"), 0))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.out.Printf("%s %s from %s", r.Method, r.URL.RequestURI(), r.RemoteAddr)
		mux.ServeHTTP(w, r)
	})
}

func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	if s.sick.Load() || os.Getenv("UNHEALTHY") != "" {
		http.Error(w, "sick", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *server) readyz(w http.ResponseWriter, _ *http.Request) {
	if wait := duration(os.Getenv("READY_AFTER"), 0); time.Since(s.started) < wait {
		http.Error(w, "not yet", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func env(w http.ResponseWriter, r *http.Request) {
	if name := r.FormValue("name"); name != "" {
		fmt.Fprintln(w, os.Getenv(name))
		return
	}
	for _, e := range os.Environ() {
		fmt.Fprintln(w, e)
	}
}

func read(w http.ResponseWriter, r *http.Request) {
	data, err := os.ReadFile(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	_, _ = w.Write(data)
}

func write(w http.ResponseWriter, r *http.Request) {
	f, err := os.Create(r.FormValue("path"))
	if err == nil {
		_, err = io.WriteString(f, r.FormValue("data"))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "ok")
}

func burn(w http.ResponseWriter, r *http.Request) {
	until := time.Now().Add(duration(r.FormValue("for"), time.Second))
	done := make(chan uint64)
	n := number(r.FormValue("cpu"), 1)
	for range n {
		go func() {
			var rounds uint64
			for time.Now().Before(until) {
				rounds++
			}
			done <- rounds
		}()
	}
	var sum uint64
	for range n {
		sum += <-done
	}
	fmt.Fprintln(w, sum)
}

func alloc(w http.ResponseWriter, r *http.Request) {
	block := make([]byte, number(r.FormValue("mb"), 1)<<20)
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	time.Sleep(duration(r.FormValue("for"), time.Second))
	fmt.Fprintln(w, len(block))
}

func serveEcho(l net.Listener, out *log.Logger) {
	for {
		conn, err := l.Accept()
		if err != nil {
			out.Print(err)
			return
		}
		go func() {
			defer conn.Close()
			out.Printf("echo from %s", conn.RemoteAddr())
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func greeting() string {
	text := "hello from " + hostname()
	if v := os.Getenv("VERSION"); v != "" {
		text += " version " + v
	}
	return text
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return err.Error()
	}
	return name
}

func duration(text string, otherwise time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		return otherwise
	}
	return d
}

func number(text string, otherwise int) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return otherwise
	}
	return n
}
